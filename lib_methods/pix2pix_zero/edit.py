"""An edit's part in one sampling: the direction in the prompt, the structure held by cross-attention, and a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import ContextShift, checkpointed, shifted_context
from lib_methods.denoiser import (
    Conditioning,
    DenoiserCall,
    Guidance,
    Order,
    Role,
    Row,
    Sampling,
    Unsupported,
    editing_of,
)
from lib_methods.errors import out_of_memory
from lib_methods.pix2pix_zero import guidance
from lib_methods.pix2pix_zero.guidance import NO_GRADIENTS
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps, WordAttention, threshold
from lib_methods.pix2pix_zero.reference import Reference
from lib_methods.pix2pix_zero.settings import GRADIENT, SOFT_BLEND, Pix2PixZeroSettings

OTHER_LENGTH = (
    "Soft blend was skipped because prompt and caption fill different numbers of 75-token chunks. Shorten "
    "the longer one."
)
NO_LONGER = "From step {} on, nothing held the structure: {}"
BLENDED = "This model gave no gradients, so soft blend held the structure."
NO_MEMORY = (
    "There was not enough memory for the gradients, so soft blend held the structure. Turn on "
    '"Save memory", or guide fewer layers.'
)
DROPPED = "At some steps nothing held the structure, because the gradient was NaN. Half precision often causes this."

_BLEND_FOR_STEP = 5 / 3  # a blend that stands in for the gradient: the default step of 0.3 becomes a half
_CONTEXT = ("context", "encoder_hidden_states")
_POOLED = "text_embeds"  # diffusers takes the pooled text and the sizes apart, `sgm` as one "y"
_GUIDED_SIZES: dict[str, tuple[int, ...]] = {"all": (), "coarse": (4, 8), "fine": (1, 2)}


class Shift:
    """The direction in the prompt's rows, under AND in each part's. Implements `lib_methods.denoiser.Hook`.

    directions: for each image what is added to its prompt's context, (tokens, dim). vectors: the same for SDXL's pooled
    text and sizes, (width,) or None; none for other models.

    Counts for the UNet that it was made for: a refiner has another text encoder.
    """

    missed = ""
    idle = "The edit did not reach the model."

    def __init__(
        self,
        sampling: Sampling,
        directions: Sequence[Tensor],
        vectors: Sequence[Tensor | None] = (),
        strength: float = 1,
    ) -> None:
        self.sampling = sampling
        self._unet = sampling.unet
        self.acted = False
        self.shifts = [_scaled(direction, strength) for direction in directions]
        self.vectors = [_scaled(vector, strength) for vector in vectors] or [None] * len(directions)
        self._tokens = 0  # of the prompt that is in the UNet

    @property
    def is_current(self) -> bool:
        """Whether the sampling still runs the UNet that this was made for."""
        return self.sampling.unet is self._unet

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        if not self.is_current:
            yield
            return

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            rows = call.current_rows
            self.acted = self.acted or bool(rows)
            self._tokens = _tokens(args, kwargs)
            changed = _with_vectors(kwargs, [self._of(row, self.vectors) for row in rows])
            return None if changed is None else (args, changed)

        shift = ContextShift(lambda: [self._of(row, self.shifts) for row in call.current_rows])
        entering = self._unet.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with shifted_context(self._unet, shift):
                yield
        finally:
            entering.remove()

    def _of(self, row: Row, added: Sequence[Tensor | None]) -> Tensor | None:
        return added[row.image] if row.role is Role.COND else None


class Edit(Shift):
    """An edit's part in one sampling. Implements `Hook`, `Editor` and `Guide` of `lib_methods.denoiser`.

    cond: the caption, a row for each image, with as many tokens as the directions at least. word_positions: the tokens
    of the mask's word in each caption. mask: where the images may change, (1, 1, h, w); None everywhere.

    What goes wrong in the middle of a sampling does not end it: `notes` says it in the user's words. remarks: what else
    the user is to know of it.
    """

    order = Order.EDIT

    def __init__(
        self,
        sampling: Sampling,
        settings: Pix2PixZeroSettings,
        reference: Reference,
        cond: Conditioning,
        directions: Sequence[Tensor],
        vectors: Sequence[Tensor | None] = (),
        word_positions: Sequence[Sequence[int]] = (),
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(sampling, directions, vectors, settings.strength)
        self.editing = editing_of(sampling)
        self.settings, self.reference, self.mask = settings, reference, mask
        self.notes: dict[str, None] = {}  # a set that keeps its order
        self.remarks: dict[str, None] = {}
        self._by_word = settings.mask_mode == "by word"
        self._attention = [WordAttention(positions) for positions in word_positions]
        self._recorder = MapRecorder(sampling.unet, sampling.latent_size, _GUIDED_SIZES[settings.layers])
        self._cond = replace(cond, context=ContextShift(lambda: list(self.shifts)).shifted(cond.context))
        if cond.vector is not None and any(shift is not None for shift in self.vectors):
            like = cond.vector[0]
            rows = [torch.zeros_like(like) if shift is None else shift.to(like) for shift in self.vectors]
            self._cond = replace(self._cond, vector=cond.vector + torch.stack(rows))
        self._loss_scale = guidance.LossScale()
        is_moved = any(shift is not None for shift in (*self.shifts, *self.vectors))
        self._guidance = settings.guidance if settings.guides and is_moved else "off"  # else there is nothing to hold
        self._share = min(1.0, settings.structure)
        self._steps = len(self.editing.sigmas) - 1
        self._first, self._last = settings.guided_steps(self._steps)
        self._maps: Maps | None = None  # of the reference, while a step is blended with them
        self._kept: Tensor | None = None  # the reference's latents at the start of the step, where a mask wants them

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        """The latents after the guidance step."""
        position = self.editing.position(call)
        if not self.is_current or not position.starts_step:
            return latents
        step, self._maps = position.step, None
        self._kept = self.reference.at(step).to(latents) if self.mask is not None or self._by_word else None
        latents = self._masked(latents, self._kept)
        is_guided = self._guidance != "off" and self._first <= step < self._last
        # a mask by word is looked at in every step; one from the middle shows where the word attends
        is_middle = self.settings.show and step == self._steps // 2 and not self.has_heat
        is_seen = any(attention.positions for attention in self._attention) and (self._by_word or is_middle)
        if not is_guided and not is_seen:
            return latents
        with self._recorder.installed():
            try:
                maps = self.reference.maps(step, self._recorder)
                self._note(maps)
            except Unsupported as error:
                self._guidance, self._by_word, self._attention = "off", False, []
                self._say(NO_LONGER.format(step + 1, error))
                return latents
            if is_guided and self._guidance == GRADIENT:
                latents = self._masked(self._stepped(latents, position.sigma, maps), self._kept)
        if is_guided and self._guidance == SOFT_BLEND:
            self._maps = maps
        return latents

    def _note(self, maps: Maps) -> None:
        for index, attention in enumerate(self._attention):
            if attention.positions:
                attention.add(maps.select([index if maps.rows > 1 else 0]))
        if self._by_word and self.has_heat:
            self.mask = threshold(self.heat(), self.settings.mask_level, grow=1)

    def _stepped(self, latents: Tensor, sigma: float, maps: Maps) -> Tensor:
        memory: AbstractContextManager[None] = (
            checkpointed(self.sampling.unet) if self.settings.save_memory else nullcontext()
        )

        def look(x: Tensor, level: float) -> Maps:
            return self._recorder.run_to_last(lambda: self.editing.predict(x, level, self._cond, gradients=True))

        try:
            with self.editing.differentiable(), memory:
                found = guidance.gradient(latents, sigma, look, maps, scale=self._loss_scale)
        except (Unsupported, RuntimeError, MemoryError) as error:
            is_memory = out_of_memory(error)
            if not is_memory and not isinstance(error, Unsupported):
                raise
            self._guidance, self._share = SOFT_BLEND, min(1.0, _BLEND_FOR_STEP * self.settings.structure)
            self._say(NO_MEMORY if is_memory else BLENDED if str(error) == NO_GRADIENTS else str(error))
            return latents
        if found.dropped:
            self._say(DROPPED)
        return guidance.step(latents, sigma, found.value, self.settings.structure)

    def _say(self, sentence: str) -> None:
        self.notes[sentence] = None

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().around(call))
            if self._maps is not None and self.is_current:
                rows = partial(self._blended, call, self._maps)
                stack.enter_context(guidance.soft_blend(self.sampling.unet, self._maps, self._share, rows))
            yield

    def _blended(self, call: DenoiserCall, maps: Maps) -> list[int | None]:
        """For each row in the UNet its image; None for rows that do not see the prompt, or one of another length."""
        rows = call.current_rows
        shifts = [self._of(row, self.shifts) for row in rows]
        tokens = max([self._tokens, *(len(shift) for shift in shifts if shift is not None)])
        fits = all(seen.shape[-1] == tokens for seen in maps.by_layer.values())
        if not fits and any(row.role is Role.COND for row in rows):
            self._say(OTHER_LENGTH)
        return [row.image if fits and row.role is Role.COND else None for row in rows]

    def guide(self, call: DenoiserCall, found: Guidance) -> Tensor:
        """The sampler's next latents: with direct inversion, corrected by what a step of the reconstruction misses;
        on the last step, with what a mask keeps."""
        position, guided = self.editing.position(call), found.guided
        if not self.is_current:
            return guided
        if self.reference.is_exact:
            guided = guided + self.reference.correction(position.step, position.sigma).to(guided)
        if not position.starts_step or position.step != self._steps - 1:
            return guided
        # after the last step the reference is led to its end, while the model is still as it was
        self._maps = None
        kept = self._kept
        if kept is None and self.reference.trajectory is None and not self.settings.show:
            return guided
        final = self.reference.final()
        if kept is None:
            return guided
        # that end itself where no noise is left
        return self._masked(guided, self.reference.straight(position.step, kept, final.to(kept)).to(guided))

    def _masked(self, latents: Tensor, kept: Tensor | None) -> Tensor:
        """What is kept where the mask is 0; nothing while there is no mask."""
        if self.mask is None or kept is None:
            return latents
        return kept + self.mask.to(latents) * (latents - kept)

    def original(self) -> Tensor | None:
        """The image that is edited: the inverted one, or what would have been generated, (batch, 4, h, w); None
        where that was interrupted."""
        trajectory = self.reference.trajectory
        return self.reference.known_final if trajectory is None else trajectory.latents[-1]

    @property
    def has_heat(self) -> bool:
        """Whether it is known where the word attends."""
        return bool(self._attention) and all(attention.steps for attention in self._attention)

    def heat(self) -> Tensor:
        """Where the word attends in each image, (batch, 1, h, w) in [0, 1]."""
        return torch.cat([attention.heat() for attention in self._attention])


def _scaled(direction: Tensor | None, strength: float) -> Tensor | None:
    """None where nothing would be added."""
    scaled = None if direction is None else strength * direction
    return scaled if scaled is not None and bool(scaled.any()) else None


def _tokens(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    named = next((kwargs[name] for name in _CONTEXT if isinstance(kwargs.get(name), Tensor)), None)
    context = named if named is not None else args[2] if len(args) > 2 else None
    return int(context.shape[1]) if isinstance(context, Tensor) else 0


def _with_vectors(kwargs: dict[str, Any], shifts: Sequence[Tensor | None]) -> dict[str, Any] | None:
    """The UNet's arguments with the pooled text moved; None where that is not wanted, or not possible."""
    added = kwargs.get("added_cond_kwargs")
    inside = added if isinstance(added, dict) and _POOLED in added else None
    vector = kwargs.get("y") if inside is None else inside[_POOLED]
    if not isinstance(vector, Tensor) or len(vector) != len(shifts) or all(shift is None for shift in shifts):
        return None
    moved = vector.clone()
    wide = torch.promote_types(vector.dtype, torch.float32)
    for row, shift in enumerate(shifts):
        if shift is not None:
            moved[row] = (vector[row].to(wide) + shift[: vector.shape[1]].to(vector.device, wide)).to(vector.dtype)
    return {**kwargs, "y": moved} if inside is None else {**kwargs, "added_cond_kwargs": {**inside, _POOLED: moved}}
