"""Apply an edit to one sampling: the direction in the prompt's rows, and the structure held by cross-attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_methods.attention import ContextShift, checkpointed, pad_tokens, shifted_context
from lib_methods.denoiser import Conditioning, DenoiserCall, EditSampling, Guidance, Role, Unsupported
from lib_methods.pix2pix_zero import guidance, masks
from lib_methods.pix2pix_zero.inversion import Trajectory, invert
from lib_methods.pix2pix_zero.inversion_cache import InversionCache, inversion_key
from lib_methods.pix2pix_zero.maps import Choice, MapRecorder, Maps
from lib_methods.pix2pix_zero.reference import Reference
from lib_methods.pix2pix_zero.settings import Pix2PixZeroSettings

Progress = Callable[[int, int], bool]

CACHE = InversionCache()
CACHE_LIMIT = 512 * 2**20  # bytes; an inversion of 50 steps at 512x512 is 3 MB

NEEDS_STEADY_SAMPLER = (
    "This sampler adds new noise at every step, so the picture cannot be found again in it. Choose one without, such "
    "as Euler, Heun, DPM++ 2M, DDIM or UniPC."
)
_GUIDED_LAYERS: dict[str, Choice] = {"all": "all", "coarse": (4, 8), "fine": (1, 2)}


@dataclass(frozen=True)
class Words:
    """What an edit is told besides its settings, an entry for each image of the batch.

    captions: what the pictures show. negatives: the negative prompts. directions: what is added to the prompt's
    embedding at strength 1, (tokens, dim). word_positions: the tokens of the mask's word in each caption, counted from
    0, which is the start token.
    """

    captions: tuple[str, ...]
    negatives: tuple[str, ...]
    directions: tuple[Tensor, ...]
    word_positions: tuple[tuple[int, ...], ...] = ()


def attach(
    sampling: EditSampling,
    settings: Pix2PixZeroSettings,
    words: Words,
    cfg_scale: float,
    *,
    seed: int = 0,
    mask: Tensor | None = None,
    progress: Progress | None = None,
    cache: InversionCache = CACHE,
) -> Edit | None:
    """Let the edit guide a sampling. Inverts the picture first, where there is one.

    mask: where the picture may change, (1, 1, h, w); None everywhere, or by word. progress: told the inversion's
    steps; returning False interrupts it, and what is done is kept for the next time.

    Returns what can be asked afterwards; None after an interrupt, and in the second pass of Hires.fix, where only the
    direction is added.

    Raises `Unsupported` with a sentence for the user.
    """
    shifts = [settings.strength * direction for direction in words.directions]
    if sampling.is_hires:
        sampling.add_hook(Shift(sampling, shifts))
        return None
    if sampling.is_stochastic:
        raise Unsupported(NEEDS_STEADY_SAMPLER)
    cond = sampling.embed(words.captions)
    own = sampling.own_latent()
    trajectory = None
    if own is not None:
        trajectory = _inverted(sampling, settings, own, cond, words.captions, seed, progress, cache)
        if not trajectory.complete:
            return None
        sampling.start_from(trajectory.start)
        reference = Reference(sampling, cond, trajectory.start, trajectory)
    else:
        uncond = sampling.embed(words.negatives) if cfg_scale != 1 else None
        reference = Reference(sampling, _as_long(cond, uncond), sampling.start_latent())
        if uncond is not None:
            reference = replace(reference, uncond=_as_long(uncond, cond), scale=cfg_scale)
    edit = Edit(sampling, settings, reference, cond, shifts, words.word_positions, mask)
    sampling.add_hook(edit)
    sampling.add_editor(edit)
    sampling.add_guide(edit)
    return edit


def _inverted(
    sampling: EditSampling,
    settings: Pix2PixZeroSettings,
    own: Tensor,
    cond: Conditioning,
    captions: Sequence[str],
    seed: int,
    progress: Progress | None,
    cache: InversionCache,
) -> Trajectory:
    """The picture's trajectory; equal rows of a batch are inverted once."""
    how = settings.for_inversion(seed)
    latents = sampling.at_end(own).float()
    distinct: dict[tuple[str, bytes], int] = {}
    rows = []
    for index, caption in enumerate(captions):
        name = (caption, latents[index].cpu().numpy().tobytes())
        rows.append(distinct.setdefault(name, index))
    chosen = sorted(set(rows))
    few = Conditioning(cond.context[chosen], None if cond.vector is None else cond.vector[chosen])
    told = "\n".join(captions[i] for i in chosen)
    key = inversion_key(latents[chosen], sampling.model_key(), told, sampling.sigmas, how)
    kept = cache.get(key)
    partial = kept if isinstance(kept, Trajectory) else None
    found = invert(
        latents[chosen], sampling.sigmas, lambda x, sigma: sampling.predict(x, sigma, few), how, progress, partial
    )
    cache.put(key, found, CACHE_LIMIT)
    places = [chosen.index(row) for row in rows]
    offsets = None if found.offsets is None else found.offsets[:, places]
    return replace(found, latents=found.latents[:, places], offsets=offsets)


def _as_long(one: Conditioning, other: Conditioning | None) -> Conditioning:
    """A conditioning with as many tokens as another, so that both fit into one batch."""
    if other is None or one.context.shape[1] >= other.context.shape[1]:
        return one
    return replace(one, context=pad_tokens(one.context, other.context.shape[1]))


class Shift:
    """The edit direction in the rows that see the prompt. Implements `lib_methods.denoiser.Hook`."""

    def __init__(self, sampling: EditSampling, shifts: Sequence[Tensor]) -> None:
        self.sampling, self.shifts = sampling, shifts

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        shift = ContextShift(lambda: [self._of(row.role, row.image) for row in call.current_rows])
        with shifted_context(self.sampling.unet, shift):
            yield

    def _of(self, role: Role, image: int) -> Tensor | None:
        direction = self.shifts[image]
        return direction if role is Role.COND and bool(direction.any()) else None


class Edit(Shift):
    """An edit's part in one sampling. Implements `Hook`, `Editor` and `Guide` of `lib_methods.denoiser`."""

    order = 80  # after what changes the guidance's range, before what corrects colours

    def __init__(
        self,
        sampling: EditSampling,
        settings: Pix2PixZeroSettings,
        reference: Reference,
        cond: Conditioning,
        shifts: Sequence[Tensor],
        word_positions: Sequence[Sequence[int]],
        mask: Tensor | None,
    ) -> None:
        super().__init__(sampling, shifts)
        self.settings, self.reference = settings, reference
        self.forwards = 0
        self.dropped: set[int] = set()
        self.mask = mask
        self._by_word = settings.mask_mode == "by word"
        self._attention = [masks.WordAttention(positions) for positions in word_positions]
        self._recorder = MapRecorder(sampling.unet, sampling.latent_size, _GUIDED_LAYERS[settings.layers])
        self._cond = replace(cond, context=self._shifted(cond.context))
        self._scale = guidance.LossScale()
        self._maps: Maps | None = None
        self._first, self._last = settings.guided_steps(len(sampling.sigmas) - 1)

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        """The latents after the guidance step."""
        position = self.sampling.position(call)
        if not position.starts_step:
            return latents
        self._maps = None
        if self.mask is not None:
            kept = self.reference.at(position.step).to(latents)
            latents = kept + self.mask.to(latents) * (latents - kept)
        if not (self.settings.guides and self._first <= position.step < self._last) and not self._wants_attention:
            return latents
        with self._recorder.installed():
            maps = self.reference.maps(position.step, self._recorder)
            self._note(maps)
            if not self.settings.guides or not self._first <= position.step < self._last:
                return latents
            self._maps = maps
            return self._stepped(latents, position.sigma, maps) if self.settings.guidance == "gradient" else latents

    @property
    def _wants_attention(self) -> bool:
        """Whether the first maps are still to be seen, for a mask by word or to show where the word attends."""
        return bool(self._attention) and self._attention[0].steps == 0

    def _note(self, maps: Maps) -> None:
        for index, attention in enumerate(self._attention):
            if attention.positions:
                attention.add(maps.select([index if maps.rows > 1 else 0]))
        if self._by_word and self._attention:
            self.mask = masks.threshold(self.heat(), self.settings.mask_level, grow=1)

    def original(self) -> Tensor:
        """The picture that is edited: the inverted one, or what would have been drawn, (batch, 4, h, w)."""
        trajectory = self.reference.trajectory
        return self.reference.final() if trajectory is None else trajectory.latents[-1]

    @property
    def has_heat(self) -> bool:
        """Whether it is known where the word attends."""
        return bool(self._attention) and all(attention.steps for attention in self._attention)

    def heat(self) -> Tensor:
        """Where the word attends in each image, (batch, 1, h, w) in [0, 1]."""
        return torch.cat([attention.heat() for attention in self._attention])

    def _stepped(self, latents: Tensor, sigma: float, maps: Maps) -> Tensor:
        memory: AbstractContextManager[None] = (
            checkpointed(self.sampling.unet) if self.settings.save_memory else nullcontext()
        )

        def look(x: Tensor, level: float) -> Maps:
            return self._recorder.run_to_last(lambda: self.sampling.predict(x, level, self._cond, gradients=True))

        with self.sampling.differentiable(), memory:
            found = guidance.gradient(latents, sigma, look, maps, scale=self._scale)
        self.forwards += 1
        self.dropped.update(found.dropped)
        return guidance.step(latents, sigma, found.value, self.settings.structure)

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().around(call))
            if self._maps is not None and self.settings.guidance == "soft blend":
                weights = [min(1.0, self.settings.structure)] * len(self.shifts)
                stack.enter_context(guidance.soft_blend(self.sampling.unet, self._maps, weights, lambda: _images(call)))
            yield

    def guide(self, call: DenoiserCall, found: Guidance) -> Tensor:
        """What the sampler goes on with: with direct inversion, corrected by what a step of the reconstruction misses;
        on the last step, with what a mask keeps."""
        position = self.sampling.position(call)
        if not position.starts_step:
            return found.guided
        guided = found.guided
        trajectory, step = self.reference.trajectory, position.step
        levels = self.sampling.sigmas
        if trajectory is not None and trajectory.offsets is not None:
            # an Euler step to s' with D + d s / (s - s') ends d further
            here, there = float(levels[step]), float(levels[step + 1])
            guided = guided + trajectory.offsets[step].to(guided) * (here / (here - there))
        if self.mask is not None and step == len(levels) - 2:
            kept = self.reference.final().to(guided)
            guided = kept + self.mask.to(guided) * (guided - kept)
        return guided

    def _shifted(self, context: Tensor) -> Tensor:
        shift = ContextShift(lambda: list(self.shifts))
        return shift.shifted(context)


def _images(call: DenoiserCall) -> list[int | None]:
    """For each row in the UNet its image; None for rows that do not see the prompt."""
    return [row.image if row.role is Role.COND else None for row in call.current_rows]
