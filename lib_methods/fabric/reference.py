"""The reference pass: the UNet's self-attention inputs for the feedback images at a noise level."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_methods.attention import SelfAttention, intercept
from lib_methods.attention.intercept import Original
from lib_methods.attention.layers import running_precision, token_grid
from lib_methods.denoiser import Sampling
from lib_methods.fabric.attention import pool_tokens
from lib_methods.fabric.cache import FeatureCache, Features
from lib_methods.fabric.noise import reference_noise

MAX_BATCH = 8  # images in one run of the UNet; more are split, always in the same way


@dataclass(frozen=True)
class References:
    """A group of feedback images, ready for the reference pass.

    ids: the images' hashes in canonical order. latents, noise: (N, 4, h, w). half: pool the features 2x2.
    """

    ids: tuple[str, ...]
    latents: Tensor
    noise: Tensor
    half: bool
    group: Hashable

    @staticmethod
    def of(ids: Sequence[str], latents: Tensor, seed: int, half: bool) -> References:
        """References with each image's own noise. The order of `ids` must be canonical (sorted): it is part of the
        cache's key."""
        noise = torch.stack([reference_noise(i, seed, tuple(latents.shape[1:])) for i in ids]).to(latents)
        return References(tuple(ids), latents, noise, half, (tuple(ids), tuple(latents.shape[2:]), seed, half))

    def features(
        self, sampling: Sampling, layers: Sequence[SelfAttention], level: Tensor, cache: FeatureCache, limit: int
    ) -> Features:
        """Features at a noise level, from the cache or from one run of the UNet over all images.

        The key is the whole group: computing an image in another batch may differ in the last bit, and a cached job
        must be bit-identical to the first one whatever the cache holds.
        """
        group, key = (sampling.model_key(), self.group), float(level.flatten()[0])
        features = cache.get(group, key)
        if features is None:
            features = self._run(sampling, layers, level)
            if 2 * features.size * sampling.steps <= limit:  # room for all steps of the job, with twice the memory
                with torch.no_grad():
                    features = features.with_projections(layers)
            cache.put(group, key, features, limit)
        return features

    def _run(self, sampling: Sampling, layers: Sequence[SelfAttention], level: Tensor) -> Features:
        height, width = self.latents.shape[2:]
        parts: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        full: dict[str, int] = {}

        def recorder(layer: SelfAttention) -> Any:
            def record(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
                full[layer.name] = hidden.shape[1]
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
        return Features(hidden, full)
