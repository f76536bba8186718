"""Apply FABRIC to one sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lib_methods.attention import SelfAttention, intercept, self_attentions
from lib_methods.attention.intercept import Original, Replacement
from lib_methods.denoiser import (
    PIXELS_PER_LATENT,
    DenoiserCall,
    Guidance,
    LoadedModel,
    Order,
    Role,
    Row,
    Sampling,
    Unsupported,
)
from lib_methods.fabric.attention import (
    align,
    attention_with_lse,
    log_weights,
    merge,
    reference_attention,
    statistics,
)
from lib_methods.fabric.reference import LADDER, LOW, FeatureCache, Features, References, image_seed
from lib_methods.fabric.settings import ALL_LAYERS, COARSE, EVERY, ONE, SIX, FabricSettings
from lib_methods.guidance import TINY, rescale
from lib_methods.pictures.fit import crop_to_fill, to_tensor

RESCALE = 0.7  # share of the colour correction's rescaling, as Lin et al. use it (arXiv 2305.08891)
NO_STEP = "No step used the feedback. Check Start and End; dislikes need a CFG scale above 1."
NO_BATCH = "A consistent batch needs a batch size above 1."
NOT_READ = (
    "self-attention layers read the feedback. Turn off token merging and other extensions that change self-attention."
)
_FIXED = {SIX: LADDER, ONE: LOW, EVERY: ()}  # noise levels at which the images are read, whatever the step's
SHARED_CACHE = FeatureCache()  # shared by both tabs, and kept from one Generate click to the next

NO_FINE_LAYERS = "All self-attention layers of this checkpoint are alike. Set Layers to all."
NO_LAYERS = "FABRIC cannot be used with this checkpoint: its UNet has no self-attention layers."


def unsuited(model: LoadedModel) -> str:
    """Why FABRIC cannot work with this checkpoint; empty if it can."""
    return "" if self_attentions(model.unet) else NO_LAYERS


def attach(
    sampling: Sampling,
    settings: FabricSettings,
    load_image: Callable[[str], Image.Image],
    cache: FeatureCache = SHARED_CACHE,
) -> FabricHook | None:
    """Let FABRIC guide a sampling; returns its part, or None if the settings ask for nothing in this pass.

    Encodes the feedback images here, before the sampler starts, so that hosts which keep only one model on the device
    do not have to swap in every step. `load_image` maps an image's hash to the image and raises a sentence for the
    user if it is not there.

    Raises `Unsupported` when the model has no self-attention that can be reached.
    """
    if sampling.is_hires:
        settings = settings.for_hires()
    if not settings.active:
        return None
    layers = chosen_layers(sampling, settings)
    if not layers:
        raise Unsupported(NO_FINE_LAYERS if self_attentions(sampling.unet) else NO_LAYERS)
    hook = FabricHook(sampling, settings, cache)
    if settings.likes or settings.dislikes:
        hook.references = _references(sampling, settings, load_image, cache)
        reads = sum(settings.strength_at(step, sampling.steps) > 0 for step in range(sampling.steps))
        size = hook.references.expected_size(layers, min(reads, hook.levels), settings.cache_limit_mb << 20)
        sampling.reserve(size)
    sampling.add_hook(hook)
    if settings.colour_correction:
        sampling.add_guide(hook)
    return hook


def chosen_layers(sampling: Sampling, settings: FabricSettings) -> Sequence[SelfAttention]:
    """The self-attention layers that read the feedback: all, the widest ones (coarse), or the others (fine)."""
    layers = self_attentions(sampling.unet)
    if settings.layers == ALL_LAYERS:
        return layers
    widths = [layer.width for layer in layers]
    coarse = settings.layers == COARSE
    return [layer for layer, width in zip(layers, widths) if (width == max(widths)) == coarse]


def _references(
    sampling: Sampling, settings: FabricSettings, load_image: Callable[[str], Image.Image], cache: FeatureCache
) -> References:
    cache.use_model(sampling.checkpoint_key())
    reuse = sampling.is_hires and settings.hires == "reuse"
    height, width = sampling.first_latent_size if reuse else sampling.latent_size
    ids = sorted({image.image_id for image in (*settings.likes, *settings.dislikes)})
    sampling.prepare()
    latents = torch.cat([_latent(sampling, i, height, width, load_image, cache) for i in ids])
    return References.of(ids, latents, settings.seed, settings.detail == "half", settings.adain, settings.layers)


def _latent(
    sampling: Sampling,
    image_id: str,
    height: int,
    width: int,
    load_image: Callable[[str], Image.Image],
    cache: FeatureCache,
) -> Tensor:
    key = (sampling.model_key(), image_id, height, width)
    latent = cache.get_latent(key)
    if latent is None:
        wide, high = width * PIXELS_PER_LATENT, height * PIXELS_PER_LATENT
        pixels = to_tensor(crop_to_fill(load_image(image_id), wide, high))[None]
        latent = sampling.encode(pixels, [image_seed(image_id, 0, "encode")])
        if not torch.isfinite(latent).all():
            raise Unsupported(
                "The VAE gave NaN for a feedback image. Start the WebUI with --no-half-vae, or choose another VAE."
            )
        cache.put_latent(key, latent)
    return latent


@dataclass(frozen=True)
class _Group:
    """The feedback for one half of the guidance: the images' features, which of them count, and their weights."""

    features: Features
    positions: tuple[int, ...]
    weights: tuple[float, ...]
    strength: float

    def spreads(self, layer: SelfAttention) -> tuple[Tensor, ...]:
        """The layer's statistics, as of `Features.spreads`, averaged over the images by their weights."""
        share = torch.tensor(self.weights) / sum(self.weights)
        chosen = (t[list(self.positions)] for t in self.features.spreads[layer.name])
        return tuple((t * share.to(t)[:, None, None, None]).sum(0, keepdim=True) for t in chosen)


class FabricHook:
    """FABRIC's part in one sampling. Leaves nothing on the model between two denoiser calls."""

    order = Order.COLOUR

    def __init__(self, sampling: Sampling, settings: FabricSettings, cache: FeatureCache) -> None:
        self.sampling, self.settings, self.cache = sampling, settings, cache
        self.references: References | None = None  # None without likes and dislikes
        self._ladder = [sampling.level(sigma) for sigma in _FIXED[settings.reference_levels]]
        self._held: tuple[Hashable, Features] | None = None
        self._offered: set[str] = set()  # names of the layers that could have read the feedback
        self._read: set[str] = set()  # of those that did
        self._read_at = -1  # the last step at which one did

    @property
    def acted(self) -> bool:
        return bool(self._read)

    @property
    def idle(self) -> str:
        if self._offered:
            return f"None of the {len(self._offered)} {NOT_READ}"
        return NO_STEP if self.references is not None or self.sampling.batch[1] > 1 else NO_BATCH

    @property
    def missed(self) -> str:
        if self._read == self._offered:
            return ""
        return f"Only {len(self._read)} of the {len(self._offered)} {NOT_READ}"

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        """Within the block, self-attention sees the feedback: likes in cond rows, dislikes in uncond rows; and of a
        consistent batch the rows of its first image in both halves."""
        strength = self.settings.strength_at(call.step, self.sampling.steps)
        shares = self.settings.consistent_batch and any(row.image > 0 for row in call.rows)
        sharing = strength if shares else 0.0
        groups = self._groups(call, strength)
        if not groups and not sharing:
            yield
            return
        layers = chosen_layers(self.sampling, self.settings)
        self._offered.update(layer.name for layer in layers)
        with intercept((layer.module, self._reader(layer, call, groups, sharing)) for layer in layers):
            yield

    @property
    def levels(self) -> int:
        """At how many noise levels the images are read at most."""
        return min(len(self._ladder) or self.sampling.steps, self.sampling.steps)

    def _reference_level(self, call: DenoiserCall) -> Tensor:
        """Of the fixed levels the one whose noise has the smallest ratio to the call's; the call's own without any."""
        if not self._ladder:
            return call.level
        noise = math.log(max(self.sampling.sigma(call.level), TINY))
        return min(self._ladder, key=lambda level: abs(math.log(self.sampling.sigma(level)) - noise))

    def _features(self, references: References, level: Tensor) -> Features:
        """What the images' layers see at this level; held until the next one, as the cache may be too small for it."""
        key, limit = (self.sampling.model_key(), float(level.item())), self.settings.cache_limit_mb << 20
        if self._held is None or self._held[0] != key:
            self._held = None  # first, so that there are never two
            layers = chosen_layers(self.sampling, self.settings)
            features = references.features(self.sampling, layers, level, self.cache, limit, self.levels)
            if self._ladder and not features.projected and 2 * features.size <= limit:
                with torch.no_grad():
                    features = features.with_projections(layers)
            self._held = key, features
        return self._held[1]

    def guide(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """Colour correction: what the feedback adds to one half of the guidance is multiplied by the CFG scale, and
        contrast and saturation with it. The guided prediction gets back the spread of the conditional one, in part."""
        if self._read_at != call.step:
            return guidance.guided
        corrected = rescale(guidance.guided, guidance.cond, RESCALE)
        if self.references is None:  # the first image of a consistent batch is what it would be without
            corrected[:1] = guidance.guided[:1]
        return corrected

    def _groups(self, call: DenoiserCall, strength: float) -> dict[Role, _Group]:
        settings, references = self.settings, self.references
        halves = {
            Role.COND: (settings.likes, strength),
            Role.UNCOND: (settings.dislikes, strength * settings.negative_weight),
        }
        present = {row.role for row in call.rows}
        groups: dict[Role, _Group] = {}
        for role, (images, weight) in halves.items():
            counted = tuple(image for image in images if image.weight > 0)
            if references is not None and role in present and counted and weight > 0:
                features = self._features(references, self._reference_level(call))
                positions = tuple(references.ids.index(image.image_id) for image in counted)
                groups[role] = _Group(features, positions, tuple(image.weight for image in counted), weight)
        return groups

    def _reader(
        self, layer: SelfAttention, call: DenoiserCall, groups: dict[Role, _Group], sharing: float
    ) -> Replacement:
        def read(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
            rows = call.current_rows
            inputs = layer.key_value_inputs(hidden, args, kwargs)
            if inputs is None or len(rows) != hidden.shape[0]:
                return original(hidden, *args, **kwargs)
            found = ((group, _positions(rows, role)) for role, group in groups.items())
            looking = [(group, chosen) for group, chosen in found if chosen is not None]
            led = _led(rows) if sharing else ()
            if not looking and not led:
                return original(hidden, *args, **kwargs)
            self._read.add(layer.name)
            self._read_at = call.step
            query, key, value = (layer.project(t, which) for t, which in zip((hidden, *inputs), "qkv"))
            if self.settings.adain:
                query, key = query.clone(), key.clone()
                for group, chosen in looking:
                    _align(query, key, chosen, group.spreads(layer))
                for leader, followers in led:
                    first = slice(leader, leader + 1)
                    _align(query, key, followers, (*statistics(query[first]), *statistics(key[first])))
            own, own_lse = attention_with_lse(query, key, value)
            out, lse = own.clone(), own_lse.clone()
            if looking:
                features = looking[0][0].features  # the same for all
                references, tokens = features.keys_and_values(layer), features.full_tokens[layer.name]
                for group, chosen in looking:
                    seen = self._attend(group, references, tokens, query[chosen], key.shape[2])
                    out[chosen], lse[chosen] = merge(out[chosen], lse[chosen], *seen)
            for leader, followers in led:
                first = slice(leader, leader + 1)
                seen = reference_attention(query[followers], key[first], value[first], [math.log(sharing)])
                out[followers], lse[followers] = merge(out[followers], lse[followers], *seen)
            return layer.output(out)

        return read

    def _attend(
        self, group: _Group, references: tuple[Tensor, Tensor], full_tokens: int, query: Tensor, own_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """The attention of rows to the images of a group, and its log-sum-exp."""
        every = group.positions == tuple(range(len(references[0])))
        key, value = (t.to(query) if every else t[list(group.positions)].to(query) for t in references)
        weights = log_weights(
            group.weights,
            group.strength,
            shared=self.settings.weighting == "shared",
            own_tokens=own_tokens,
            stored_tokens=key.shape[2],
            full_tokens=full_tokens,
        )
        return reference_attention(query, key, value, weights)


def _align(query: Tensor, key: Tensor, chosen: slice | Tensor, spreads: Sequence[Tensor]) -> None:
    """AdaIN, in place, of the queries and keys of some rows. spreads: the references' `Features.spreads`."""
    query_mean, query_spread, key_mean, key_spread = (t.to(query.device) for t in spreads)
    query[chosen] = align(query[chosen], query_mean, query_spread)
    key[chosen] = align(key[chosen], key_mean, key_spread)


def _led(rows: Sequence[Row]) -> Sequence[tuple[int, Tensor]]:
    """For each kind of row, the place of the batch's first image, and those of the others."""
    found = []
    for kind in dict.fromkeys(replace(row, image=0) for row in rows):
        alike = [(i, row.image) for i, row in enumerate(rows) if replace(row, image=0) == kind]
        leader = next((i for i, image in alike if image == 0), None)
        followers = [i for i, image in alike if image > 0]
        if leader is not None and followers:
            found.append((leader, torch.tensor(followers)))
    return found


def _positions(rows: Sequence[Row], role: Role) -> slice | Tensor | None:
    """The rows of a role in the running batch; a slice where they are neighbours, which they are in every known
    host."""
    found = [i for i, row in enumerate(rows) if row.role is role]
    if not found:
        return None
    if found[-1] - found[0] + 1 == len(found):
        return slice(found[0], found[-1] + 1)
    return torch.tensor(found)
