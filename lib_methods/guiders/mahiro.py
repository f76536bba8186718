"""MaHiRo."""

from __future__ import annotations

import torch
from torch import Tensor

from lib_methods.guidance import combine, widened


def mahiro(base: Tensor, direction: Tensor, scale: float) -> Tensor:
    """MaHiRo: blends the guided prediction with w c, the more of that the less the two predictions agree.

    With s the cosine, over the channels of a position and then averaged, of the signed roots of w u and of the mean of
    w c and the guided prediction g: `(1 + s) / 2 g + (1 - s) / 2 w c`.

    Source: ComfyUI, `comfy_extras/nodes_mahiro.py`, which averages over the batch.
    """
    leap, guided = widened(base + direction) * scale, combine(widened(base), widened(direction), scale)
    merged = (leap + guided) / 2
    one, other = (x.sign() * x.abs().sqrt() for x in (widened(base) * scale, merged))
    alike = torch.cosine_similarity(one, other, dim=1).mean((1, 2))[:, None, None, None]
    return torch.lerp(leap, guided, (1 + alike) / 2).to(base.dtype)
