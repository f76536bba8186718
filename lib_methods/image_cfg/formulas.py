"""The guidance of InstructPix2Pix (arXiv 2211.09800, equation 3), and the rows that it needs.

`e = e(0, 0) + s_I [e(I, 0) - e(0, 0)] + s_T [e(I, T) - e(I, 0)]`: s_I is the image scale, how close to the input, and
s_T the text scale, how close to the instruction. It is linear in the predictions, so it holds for predictions of the
noise and of the clean latent.
"""

from __future__ import annotations

import math

from torch import Tensor

from lib_methods.denoiser import Needs, RowPlan
from lib_methods.guidance import combine

SCHEDULES = ("constant", "linear", "cosine")


def scale_at(schedule: str, first: float, last: float, progress: float) -> float:
    """The scale at a part of the way, `progress` from 0 (first guided step) to 1 (last guided step).

    "constant" stays at `first`; "linear" goes evenly to `last`; "cosine" goes there along half a wave, slowly at both
    ends.
    """
    if schedule == "constant":
        return first
    if schedule == "linear":
        return first + (last - first) * progress
    if schedule == "cosine":
        return first + (last - first) * (1 - math.cos(math.pi * progress)) / 2
    raise ValueError(f"there is no schedule {schedule!r}")


def region_scale(black: float, white: float, mask: Tensor | float) -> Tensor | float:
    """s_I at every position: `black` where the mask is 0, `white` where it is 1, linear between. One number where it is
    the same everywhere, so that the short cuts of `plan` stay."""
    return black if black == white else black * (1 - mask) + white * mask


def base(image: Tensor, empty: Tensor, image_scale: Tensor | float) -> Tensor:
    """The sum without its last term: `e(0, 0) + s_I [e(I, 0) - e(0, 0)]`.

    image, empty: (batch, 4, h, w). image_scale: one number, or one a position, (1, 1, h, w).
    """
    return combine(empty, image - empty, image_scale)


def plan(text_scale: float, image_scale: Tensor | float, needs: Needs) -> RowPlan:
    """The rows of one denoiser call, no more than the sum needs.

    s_I = 1 cancels e(0, 0); s_T = s_I cancels e(I, 0); with both 1 the conditional prediction is the result. Under AND,
    with weights that do not add up to 1, e(I, 0) cancels nowhere. Image scales that differ from position to position
    cancel nothing everywhere, so all rows are needed.
    """
    if isinstance(image_scale, Tensor):
        return RowPlan(text_scale, image_scale, with_picture=True, without_picture=True)
    cancels = needs.sums_to_one and not needs.base and not needs.empty
    return RowPlan(
        text_scale=text_scale,
        image_scale=image_scale,
        with_picture=not (cancels and text_scale == image_scale),
        without_picture=needs.empty or image_scale != 1.0,
    )
