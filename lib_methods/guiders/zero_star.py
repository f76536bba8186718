"""CFG-Zero*."""

from __future__ import annotations

from torch import Tensor

from lib_methods.guidance import TINY, combine, widened


def cfg_zero_star(base: Tensor, direction: Tensor, scale: float) -> Tensor:
    """CFG-Zero*: u is first scaled by <c, u> / <u, u>, which brings it as near to c as a factor can.

    Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models" (arXiv 2503.18886);
    its other half, zeros in place of the first steps' velocity, is for flow models alone.
    """
    dims = (1, 2, 3)
    cond, wide = widened(base + direction), widened(base)
    factor = (cond * wide).sum(dims, keepdim=True) / (wide.square().sum(dims, keepdim=True) + TINY)
    nearer = wide * factor
    return combine(nearer, cond - nearer, scale).to(base.dtype)
