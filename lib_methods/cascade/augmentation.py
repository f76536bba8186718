"""Noise augmentation: the enlarged, noisy image on which super-resolution is conditioned (arXiv 2205.11487)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def low_resolution(images: Tensor, side: int) -> Tensor:
    """The first stage's part of a pair: images (B, C, H, W) with the short side brought down to `side` pixels,
    (B, C, h, w), smoothed as for any smaller image. Raises ValueError where they would be enlarged."""
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    if side < 1 or scale > 1:
        raise ValueError(f"images of {width}x{height} pixels have no low resolution of {side}")
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def enlarged(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Low-resolution images in full size (height, width), as IF's pipeline brings them there."""
    return functional.interpolate(low, size, mode="bilinear", align_corners=True)


def noised(images: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """sqrt(a) * images + sqrt(1 - a) * noise. kept: a, the schedule's cumulative alpha at one step."""
    kept = kept.to(images)
    return kept.sqrt() * images + (1 - kept).sqrt() * noise


def kept_signal(level: float, alphas_cumprod: Tensor) -> float:
    """The cumulative alpha of an augmentation's level.

    level: time of the forward process from 0, no noise, to 1, its last step (Imagen's `aug_level`, arXiv 2205.11487,
    appendix A.1). alphas_cumprod: (T,); step i lies at time (i + 1) / T, and in between the variance grows evenly.
    Raises ValueError.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"the augmentation's level must be between 0 and 1, not {level:g}")
    place = level * len(alphas_cumprod)
    below = min(int(place), len(alphas_cumprod) - 1)
    before = 1.0 if below == 0 else float(alphas_cumprod[below - 1])
    return before + (place - below) * (float(alphas_cumprod[below]) - before)


def level_label(level: float, steps: int) -> float:
    """The class label for a noise level: its timestep. Levels up to 1 / steps all map to timestep 0."""
    return max(0.0, level * steps - 1)


def augmented(images: Tensor, noise: Tensor, level: float, alphas_cumprod: Tensor) -> Tensor:
    """Images with the noise of a level: sqrt(a) * images + sqrt(1 - a) * noise."""
    kept = kept_signal(level, alphas_cumprod)
    return kept**0.5 * images + (1 - kept) ** 0.5 * noise
