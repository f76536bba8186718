"""Skimmed CFG: less guidance for what it drives too far."""

from __future__ import annotations

import torch
from torch import Tensor

from lib_methods.guidance import combine


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
