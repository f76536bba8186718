"""Painted masks: black, white and greys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from lib_methods.pictures.convert import to_mask
from lib_methods.pictures.fit import fit
from lib_methods.pictures.tensor import to_tensor

_ROUNDING = 1e-6  # what averaging one and the same grey may differ by


def on_latents(mask: Image.Image, height: int, width: int, pixels_per_latent: int, how: str) -> Tensor | float:
    """The share of white at every position of the latents, (1, 1, height, width) in [0, 1]; one number where it is the
    same everywhere.

    The mask's brightness is fitted as a picture is (see `fit`), but without sharpening, and averaged over each
    position's pixels.
    """
    grey = mask.convert("L")
    fitted = fit(grey, width * pixels_per_latent, height * pixels_per_latent, how, Image.Resampling.BOX)
    white = (to_tensor(fitted)[:1] + 1) / 2
    shares = torch.nn.functional.avg_pool2d(white[None], pixels_per_latent)
    low, high = float(shares.min()), float(shares.max())
    return shares if high - low > _ROUNDING else low


def cut_out(mask: Image.Image, part: Sequence[float]) -> Image.Image:
    """A part of the mask: left, top, right and bottom as shares of its sides, at least one pixel."""
    left, top = int(part[0] * mask.width), int(part[1] * mask.height)
    right, bottom = round(part[2] * mask.width), round(part[3] * mask.height)
    return mask.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


def of_the_tab(mask: Image.Image, inverted: bool, blur: float) -> Image.Image:
    """What was painted in the inpaint tab as a grey picture, see `to_mask`.

    blur: the radius in pixels of the tab's "Mask blur".
    """
    grey = to_mask(mask)
    grey = ImageOps.invert(grey) if inverted else grey
    return grey.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else grey
