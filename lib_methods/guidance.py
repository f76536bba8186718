"""The arithmetic of classifier-free guidance, once for every method.

Linear in the predictions, so it holds for predictions of the noise and of the clean latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-8
"""What a spread is at least, so that nothing is divided by 0."""


def combine(base: Tensor, direction: Tensor, scale: float | Tensor) -> Tensor:
    """`base + scale * direction`: with the unconditional prediction for a base, and from there to the conditional one
    for a direction, classifier-free guidance (arXiv 2207.12598). scale: one number, or a tensor that broadcasts."""
    return base + scale * direction


def widened(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()


def weigh(rows: Tensor, owners: Sequence[int], weights: Sequence[float], images: int) -> Tensor:
    """The weighted sum of each image's conditional rows under AND: (images, channels, h, w).

    rows: (rows, channels, h, w). owners: the image of every row. weights: of every row.
    """
    counts = torch.tensor(weights, device=rows.device, dtype=rows.dtype)[:, None, None, None]
    summed = rows.new_zeros(images, *rows.shape[1:])
    return summed.index_add(0, torch.tensor(owners, device=rows.device), rows * counts)


def rescale(guided: Tensor, cond: Tensor, share: float = 0.7) -> Tensor:
    """CFG rescale: give the guided prediction the spread of the conditional one.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), equations 15 and
    16: `share * guided * std(cond) / std(guided) + (1 - share) * guided`, the standard deviations over all channels and
    positions of an image. Guidance beyond scale 1 makes the spread larger than any clean image's, which shows as
    contrast and saturation that burn.

    Shapes (batch, channels, h, w); `share` from 0 (nothing) to 1.
    """
    wanted, found = (x.float().std((1, 2, 3), keepdim=True) for x in (cond, guided))
    factor = wanted / found.clamp(min=TINY)
    return guided * (share * factor + (1 - share)).to(guided.dtype)


def quantile(x: Tensor, share: float, dims: tuple[int, ...]) -> Tensor:
    """Quantile with linear interpolation over the last dimensions, which stay with size 1.

    `torch.quantile` takes at most 2^24 values, fewer than a large image has.
    """
    if share == 1:
        return x.amax(dims, keepdim=True)
    ordered = x.flatten(dims[0]).sort(-1).values
    place = share * (ordered.shape[-1] - 1)
    low = int(place)
    found = torch.lerp(ordered[..., low], ordered[..., min(low + 1, ordered.shape[-1] - 1)], place - low)
    return found.reshape(*x.shape[: dims[0]], *[1] * len(dims))
