"""The mimic scale and its schedules, as pure functions of tensors. No host, no settings.

The mimic scale of the sd-dynamic-thresholding extension (Birch-san, dtan3847, mcmonkey4eva), which carries Imagen's
dynamic thresholding (arXiv 2205.11487, section 2.3) over to latents. An image's result does not depend on its batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib_methods.guidance import TINY, quantile

SCHEDULES = (
    "Constant",
    "Linear Down",
    "Cosine Down",
    "Half Cosine Down",
    "Linear Up",
    "Cosine Up",
    "Half Cosine Up",
    "Power Up",
    "Power Down",
    "Linear Repeating",
    "Cosine Repeating",
    "Sawtooth",
)
VALUED_SCHEDULES = ("Power Up", "Power Down", "Linear Repeating", "Cosine Repeating", "Sawtooth")
"""Those that a value belongs to: the power, or the number of repeats."""

STARTPOINTS = ("MEAN", "ZERO")
VARIABILITIES = ("AD", "STD")

_FLAT = 1e-6  # of the largest value: what varies less is rounding


def mimic_threshold(
    guided: Tensor,
    mimic: Tensor,
    *,
    share: float = 1.0,
    separate_channels: bool = True,
    startpoint: str = "MEAN",
    variability: str = "AD",
    phi: float = 1.0,
) -> Tensor:
    """Give the guided prediction the range that another guided prediction has.

    With g and m the two, centred on the mean of each channel, V(m) and V(g) how far they vary:

    - AD: V(m) = max |m|, V(g) = quantile of |g|. g is clipped to +-max(V(m), V(g)) and multiplied by
      V(m) / max(V(m), V(g)), so that a range that is small enough is left alone.
    - STD: V is the standard deviation (n - 1), and g is multiplied by V(m) / V(g), which may also widen.
    - From the mean, the channel's mean is added again. From zero, the prediction itself, neither centred nor clipped,
      is multiplied by V(m) / V(g).

    A channel that does not vary at all is left alone.

    Args:
        guided: prediction at the full scale; shape (batch, channels, h, w), any floating type, worked on in fp32.
        mimic: prediction at the mimic scale, same shape.
        share: the quantile, in [0, 1]; 1 is the maximum.
        separate_channels: measure each channel by itself, or all channels of an image together.
        startpoint: of `STARTPOINTS`. variability: of `VARIABILITIES`.
        phi: share of the result, the rest is `guided`.
    """
    dims = (2, 3) if separate_channels else (1, 2, 3)
    target, model = _wide(guided), _wide(mimic)
    centre = target.mean((2, 3), keepdim=True)
    centred, like = target - centre, model - model.mean((2, 3), keepdim=True)
    if variability == "STD":
        wanted, found = _std(like, dims), _std(centred, dims)
    else:
        wanted, found = like.abs().amax(dims, keepdim=True), quantile(centred.abs(), share, dims)
        if startpoint == "MEAN":
            found = torch.maximum(wanted, found)
            centred = centred.clamp(-found, found)
    varies = found > _FLAT * target.abs().amax(dims, keepdim=True) + TINY
    factor = torch.where(varies, wanted / found.clamp(min=TINY), torch.ones_like(found))
    result = centred * factor + centre if startpoint == "MEAN" else target * factor
    return (result if phi == 1 else result * phi + target * (1 - phi)).to(guided.dtype)


def scheduled(scale: float, schedule: str, minimum: float, step: int, steps: int, value: float = 4.0) -> float:
    """A guidance scale at sampling step `step` (from 0) of `steps`: minimum + (scale - minimum) * factor.

    schedule: of `SCHEDULES`; the factor goes over the steps' share t = step / (steps - 1), 0 for a single step. "Half"
    cosines are those of t radians, which end half way. value: the power, or the number of repeats.
    """
    t = min(1.0, step / (steps - 1)) if steps > 1 else 0.0
    repeated = (t * value) % 1.0
    factor = {
        "Constant": lambda: 1.0,
        "Linear Down": lambda: 1 - t,
        "Cosine Down": lambda: math.cos(t * math.pi / 2),
        "Half Cosine Down": lambda: math.cos(t),
        "Linear Up": lambda: t,
        "Cosine Up": lambda: 1 - math.cos(t * math.pi / 2),
        "Half Cosine Up": lambda: 1 - math.cos(t),
        "Power Up": lambda: t**value,
        "Power Down": lambda: 1 - t**value,
        "Linear Repeating": lambda: abs(1 - 2 * repeated),
        "Cosine Repeating": lambda: (math.cos(t * 2 * math.pi * value) + 1) / 2,
        "Sawtooth": lambda: repeated,
    }[schedule]()
    return scale if schedule == "Constant" else minimum + (scale - minimum) * factor


def _wide(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()


def _std(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Standard deviation with n - 1, or 0 for a single value."""
    count = math.prod(x.shape[dim] for dim in dims)
    return x.std(dims, correction=min(1, count - 1), keepdim=True)
