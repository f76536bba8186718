"""Ways to combine the predictions without and with the prompt, as pure functions of tensors. No host, no settings.

All take predictions of the clean latent, shape (batch, channels, h, w): `base` (u, without the prompt), `direction`
(c - u, towards the prediction c with it) and the CFG scale w, and return a guided prediction of the same shape and
type. Plain guidance is u + w (c - u). An image's result does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib_methods.guidance import TINY, combine


def skim(base: Tensor, direction: Tensor, scale: float, skimming: float) -> Tensor:
    """Skimmed CFG: a lower scale for the values that guidance drives away from zero.

    Where c - u has the sign of c, and the guided prediction keeps that sign, a value comes out as at the scale
    `skimming`; the others keep the full scale, so the prompt is followed as before.

    Source: Extraltodeus, Skimmed_CFG for ComfyUI ("single scale", without its flipping filter and without skimming the
    negative prompt a second time).
    """
    guided, cond = combine(base, direction, scale), base + direction
    outward = (direction.sign() == cond.sign()) & (guided.sign() == cond.sign())
    return torch.where(outward, combine(base, direction, min(skimming, scale)), guided)


class Momentum:
    """A running sum of the directions of one pass of a sampler: `sum = direction + momentum * sum` (APG).

    Each image has its own; a new pass needs a new object.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._sum: Tensor | None = None

    def __call__(self, direction: Tensor) -> Tensor:
        """The direction to use in place of this call's own, fp32 at least."""
        before, direction = self._sum, _wide(direction)
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
    cond, moved = base + direction, _wide(direction)
    if momentum is not None:
        moved = momentum(moved)
    if norm > 0:
        moved = moved * (norm / _norm(moved)).clamp(max=1.0)
    along = _wide(cond)
    along = along / _norm(along)
    parallel = (moved * along).sum(dims, keepdim=True) * along
    return (_wide(cond) + (scale - 1) * (moved - (1 - eta) * parallel)).to(base.dtype)


def cfg_zero_star(base: Tensor, direction: Tensor, scale: float) -> Tensor:
    """CFG-Zero*: u is first scaled by <c, u> / <u, u>, which brings it as near to c as a factor can.

    Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models" (arXiv 2503.18886);
    its other half, zeros in place of the first steps' velocity, is for flow models alone.
    """
    dims = (1, 2, 3)
    cond, wide = _wide(base + direction), _wide(base)
    factor = (cond * wide).sum(dims, keepdim=True) / (wide.square().sum(dims, keepdim=True) + TINY)
    nearer = wide * factor
    return combine(nearer, cond - nearer, scale).to(base.dtype)


def mahiro(base: Tensor, direction: Tensor, scale: float) -> Tensor:
    """MaHiRo: blends the guided prediction with w c, the more of that the less the two predictions agree.

    With s the cosine, over the channels of a position and then averaged, of the signed roots of w u and of the mean of
    w c and the guided prediction g: `(1 + s) / 2 g + (1 - s) / 2 w c`.

    Source: ComfyUI, `comfy_extras/nodes_mahiro.py`, which averages over the batch.
    """
    leap, guided = _wide(base + direction) * scale, combine(_wide(base), _wide(direction), scale)
    merged = (leap + guided) / 2
    one, other = (x.sign() * x.abs().sqrt() for x in (_wide(base) * scale, merged))
    alike = torch.cosine_similarity(one, other, dim=1).mean((1, 2))[:, None, None, None]
    return torch.lerp(leap, guided, (1 + alike) / 2).to(base.dtype)


def _wide(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()


def _norm(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=TINY)
