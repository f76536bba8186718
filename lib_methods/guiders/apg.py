"""Adaptive projected guidance."""

from __future__ import annotations

from torch import Tensor

from lib_methods.guidance import TINY, widened


class Momentum:
    """A running sum of the directions of one pass of a sampler: `sum = direction + momentum * sum` (APG).

    Each image has its own; a new pass needs a new object.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._sum: Tensor | None = None

    def __call__(self, direction: Tensor) -> Tensor:
        """The direction to use in place of this call's own, fp32 at least."""
        before, direction = self._sum, widened(direction)
        if before is not None and before.shape == direction.shape:  # another shape is another part of the image
            direction = direction + self.momentum * before
        self._sum = direction
        return direction


def apg(
    base: Tensor,
    direction: Tensor,
    scale: float,
    *,
    eta: float = 0.0,
    norm: float = 0.0,
    momentum: Momentum | None = None,
) -> Tensor:
    """Adaptive projected guidance: c + (w - 1) d', with d' what is left of c - u when its part along c is damped.

    The part of c - u along c mostly raises saturation; what is orthogonal to it carries the prompt.

    Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models" (arXiv
    2410.02416). diffusers' guider is this with `use_original_formulation` and its scale one lower.

    Args:
        eta: how much of the part along c stays; 1 is plain guidance.
        norm: limit of the direction's L2 norm over an image, before it is split; 0 is none. The paper: 2.5 to 15.
        momentum: of this pass; None for none. The paper: -0.5 to -0.75.
    """
    dims = (1, 2, 3)
    cond, moved = base + direction, widened(direction)
    if momentum is not None:
        moved = momentum(moved)
    if norm > 0:
        moved = moved * (norm / _length(moved)).clamp(max=1.0)
    along = widened(cond)
    along = along / _length(along)
    parallel = (moved * along).sum(dims, keepdim=True) * along
    return (widened(cond) + (scale - 1) * (moved - (1 - eta) * parallel)).to(base.dtype)


def _length(x: Tensor) -> Tensor:
    """The L2 norm of each image."""
    return x.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=TINY)
