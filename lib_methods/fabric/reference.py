"""The reference pass: the UNet's self-attention inputs for the feedback images at a noise level, and where they are
kept from one denoiser call, job and Generate click to the next."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lib_methods.attention import SelfAttention, intercept
from lib_methods.attention.intercept import Original, Replacement
from lib_methods.attention.layers import running_precision, token_grid
from lib_methods.denoiser import Sampling
from lib_methods.fabric.attention import pool_tokens, statistics

LADDER = (14.6, 3.9, 1.04, 0.277, 0.074, 0.03)
"""The noise levels of *six*: over Stable Diffusion's schedule, each 3.75 times the next, so that the 16 guided steps of
the usual 20 take the first three. `python run.py evaluate fabric` compares them with every step's own."""
LOW = (0.25,)
"""The noise level of *one*: nearly clean images, found by measurement."""
MAX_BATCH = 8  # images in one run of the UNet; more are split, always in the same way


@dataclass(frozen=True)
class Features:
    """What the self-attention layers of the UNet saw of a group of reference images at one noise level.

    hidden: by layer name, the layer's input, shape (images, stored tokens, channels); empty where `projected` is kept.
    full_tokens: by layer name, the tokens before pooling.
    projected: by layer name, keys and values of shape (images, heads, stored tokens, channels / heads).
    spreads: by layer name, mean and standard deviation of the queries and of the keys over all tokens, four tensors of
    shape (images, heads, 1, channels / heads) in fp32; where AdaIN needs them.
    """

    hidden: dict[str, Tensor]
    full_tokens: dict[str, int]
    projected: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    spreads: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes held."""
        several = (*self.projected.values(), *self.spreads.values())
        held = (*self.hidden.values(), *(t for tensors in several for t in tensors))
        return sum(t.numel() * t.element_size() for t in held)

    def keys_and_values(self, layer: SelfAttention) -> tuple[Tensor, Tensor]:
        """Keys and values of all images in a layer. Always projected together, so that kept ones are the same to the
        last bit as those computed again."""
        kept = self.projected.get(layer.name)
        if kept is not None:
            return kept
        hidden = self.hidden[layer.name]
        return layer.project(hidden, "k"), layer.project(hidden, "v")

    def with_projections(self, layers: Sequence[SelfAttention]) -> Features:
        """The same, with keys and values in place of the layers' inputs: twice the memory, and less to do."""
        seen = [layer for layer in layers if layer.name in self.hidden]
        projected = {layer.name: self.keys_and_values(layer) for layer in seen}
        return replace(self, hidden={}, projected=projected)


class FeatureCache:
    """Features by (group of images, noise level), where a group stands for images, size, seed and detail.

    A job visits its noise levels in order, again and again. Dropping the least recently used entry would then
    drop each one just before it is needed, so a full cache drops other groups' entries and, when nothing of
    theirs is left, keeps what it has. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Hashable = None
        self._groups: OrderedDict[Hashable, dict[Hashable, Features]] = OrderedDict()
        self._latents: OrderedDict[Hashable, Tensor] = OrderedDict()

    def use_model(self, key: Hashable) -> None:
        """Forget everything if another checkpoint was loaded since the last call."""
        with self._lock:
            if key != self._model:
                self._model = key
                self._groups.clear()
                self._latents.clear()

    def get(self, group: Hashable, level: Hashable) -> Features | None:
        """The features, or None."""
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group].get(level)
            return None

    def put(self, group: Hashable, level: Hashable, features: Features, limit: int) -> bool:
        """Keep the features if `limit` bytes allow it, and say whether they were kept."""
        with self._lock:
            while self._size() + features.size > limit and any(other != group for other in self._groups):
                oldest = next(other for other in self._groups if other != group)
                entries = self._groups[oldest]
                entries.popitem()
                if not entries:
                    del self._groups[oldest]
            if self._size() + features.size > limit:
                return False
            self._groups.setdefault(group, {})[level] = features
            self._groups.move_to_end(group)
            return True

    def get_latent(self, key: Hashable) -> Tensor | None:
        """An encoded feedback image, or None."""
        with self._lock:
            return self._latents.get(key)

    def put_latent(self, key: Hashable, latent: Tensor) -> None:
        """Keep an encoded feedback image; the 256 newest stay (64 KiB each at 512x512)."""
        with self._lock:
            self._latents[key] = latent
            while len(self._latents) > 256:
                self._latents.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._groups.clear()
            self._latents.clear()

    @property
    def size(self) -> int:
        """Bytes of features held."""
        with self._lock:
            return self._size()

    def _size(self) -> int:
        return sum(f.size for entries in self._groups.values() for f in entries.values())


def image_seed(image_id: str, seed: int, purpose: str) -> int:
    """A seed that depends only on the image, the user's seed and its purpose."""
    digest = hashlib.sha256(f"{image_id}:{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


def reference_noise(image_id: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The image's noise, fp32 on the CPU: the same in every call, job, batch and on every device."""
    generator = torch.Generator().manual_seed(image_seed(image_id, seed, "noise"))
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class References:
    """A group of feedback images, ready for the reference pass.

    ids: the images' hashes in canonical order. latents, noise: (N, 4, h, w). half: pool the features 2x2. spreads: keep
    what AdaIN needs, too. group: their part of the cache's key.
    """

    ids: tuple[str, ...]
    latents: Tensor
    noise: Tensor
    half: bool
    spreads: bool
    group: Hashable

    @staticmethod
    def of(
        ids: Sequence[str], latents: Tensor, seed: int, half: bool, spreads: bool = False, layers: str = ""
    ) -> References:
        """References with each image's own noise. The order of `ids` must be canonical (sorted): it is part of the
        cache's key, as is the name of the choice of layers."""
        noise = torch.stack([reference_noise(i, seed, tuple(latents.shape[1:])) for i in ids]).to(latents)
        group = (tuple(ids), tuple(latents.shape[2:]), seed, half, spreads, layers)
        return References(tuple(ids), latents, noise, half, spreads, group)

    def features(
        self,
        sampling: Sampling,
        layers: Sequence[SelfAttention],
        level: Tensor,
        cache: FeatureCache,
        limit: int,
        levels: int,
    ) -> Features:
        """Features at a noise level, of `levels` in this job, from the cache or from one run of the UNet over all
        images.

        The key is the whole group: computing an image in another batch may differ in the last bit, and a cached job
        must be bit-identical to the first one whatever the cache holds.
        """
        group, key = (sampling.model_key(), self.group), float(level.flatten()[0])
        features = cache.get(group, key)
        if features is None:
            features = self._run(sampling, layers, level)
            if 2 * features.size * levels <= limit:  # room for all levels of the job, with twice the memory
                with torch.no_grad():
                    features = features.with_projections(layers)
            cache.put(group, key, features, limit)
        return features

    def expected_size(self, layers: Sequence[SelfAttention], levels: int, limit: int) -> int:
        """Bytes of the features at so many noise levels, at most `limit`, and of one more with its projections: an
        estimate from the layers' widths, as a layer of twice the width has a quarter of the tokens."""
        narrowest = min(layer.width for layer in layers)
        pixels = self.latents.shape[0] * self.latents.shape[2] * self.latents.shape[3]
        elements = sum(pixels * narrowest**2 // layer.width for layer in layers)
        one = elements * self.latents.element_size() // (4 if self.half else 1)
        return min(one * levels, limit) + 3 * one

    def _run(self, sampling: Sampling, layers: Sequence[SelfAttention], level: Tensor) -> Features:
        height, width = self.latents.shape[2:]
        parts: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        full: dict[str, int] = {}
        spreads: dict[str, list[tuple[Tensor, ...]]] = {}

        def recorder(layer: SelfAttention) -> Replacement:
            def record(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
                full[layer.name] = hidden.shape[1]
                if self.spreads:
                    found = (t for which in "qk" for t in statistics(layer.project(hidden, which)))
                    spreads.setdefault(layer.name, []).append(tuple(found))
                kept = hidden.detach()
                if self.half:
                    grid = token_grid(hidden.shape[1], height, width)
                    kept = pool_tokens(kept, *grid) if grid else kept
                # rounded as the projections will round it: nothing is lost, and half of the memory saved
                parts[layer.name].append(kept.to(running_precision(kept)))
                return original(hidden, *args, **kwargs)

            return record

        noisy = sampling.noisy(self.latents, self.noise, level)
        with torch.no_grad(), intercept((layer.module, recorder(layer)) for layer in layers):
            for chunk in noisy.split(MAX_BATCH):
                sampling.run_unet(chunk, level)
        hidden = {name: torch.cat(tensors) for name, tensors in parts.items() if tensors}
        joined = {name: tuple(map(torch.cat, zip(*parts))) for name, parts in spreads.items()}
        return Features(hidden, full, spreads=joined)
