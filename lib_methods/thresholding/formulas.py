"""The formulas, as pure functions of tensors."""

from __future__ import annotations

from torch import Tensor

_TINY = 1e-8


def rescale_guidance(guided: Tensor, cond: Tensor, share: float = 0.7) -> Tensor:
    """CFG rescale: give the guided prediction the spread of the conditional one.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), equations 15 and
    16: `share * guided * std(cond) / std(guided) + (1 - share) * guided`, the standard deviations over all channels and
    positions of a picture. Guidance beyond scale 1 makes the spread larger than any clean picture's, which shows as
    contrast and saturation that burn.

    Shapes (batch, channels, h, w); `share` from 0 (nothing) to 1.
    """
    wanted, found = (x.float().std((1, 2, 3), keepdim=True) for x in (cond, guided))
    factor = wanted / found.clamp(min=_TINY)
    return guided * (share * factor + (1 - share)).to(guided.dtype)
