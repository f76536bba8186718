"""Which rows a denoiser call computes for a model that sees a picture beside the latents, and what they are made into.

Such a model (InstructPix2Pix) has three predictions for an image: e(I, T) sees the picture and the prompt, e(I, 0) the
picture alone, e(0, 0) neither. A host computes all of them or knows only two; a method that is asked instead names the
ones that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lib_methods.denoiser.call import DenoiserCall


@dataclass(frozen=True)
class Needs:
    """What a denoiser call must know beyond the guided prediction.

    sums_to_one: the weights of every image's prompts under AND add up to 1; always so without AND.
    base: somebody asks for the guidance's base and direction (`Guidance`), not for its sum alone.
    empty: the sampler itself goes on with e(0, 0) (DDIM CFG++).
    """

    sums_to_one: bool = True
    base: bool = False
    empty: bool = False


@dataclass(frozen=True)
class Plan:
    """The unconditional rows of one call, and its scales: `base(e(I, 0), e(0, 0)) + text_scale * (cond - e(I, 0))`.

    image_scale: one number, or one a position of the latents, (1, 1, h, w).

    with_picture: e(I, 0) is computed. Without it the base stands in its place: right where the sum does not need it.
    without_picture: e(0, 0) is computed. Without it e(I, 0) is the base; with neither, the conditional prediction is
    the result and the scales must be 1.
    """

    text_scale: float
    image_scale: Tensor | float
    with_picture: bool
    without_picture: bool


class RowPlanner(Protocol):
    """A method that decides about the unconditional rows."""

    def picture(self) -> Tensor:
        """What goes beside the latents in rows that see the picture, (batch, channels, h, w); zeros in the others."""

    def plan(self, call: DenoiserCall, text_scale: float, needs: Needs) -> Plan:
        """The rows of this call. `text_scale` is the host's CFG scale."""

    def base(self, plan: Plan, image: Tensor, empty: Tensor) -> Tensor:
        """The guidance's base from e(I, 0) and e(0, 0), shapes (batch, 4, h, w); asked where both are computed."""
