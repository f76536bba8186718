"""Fits images and painted masks to the size of a pass, and makes tensors of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from lib_methods.pictures.convert import to_mask

FITS = ("crop", "pad", "stretch")
_ROUNDING = 1e-6  # what averaging one and the same grey may differ by


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as fp32 tensor of shape (3, H, W) in [-1, 1]."""
    return (
        torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()
    )


def to_image(pixels: Tensor) -> Image.Image:
    """A tensor (3, H, W) in [-1, 1] as an RGB image."""
    levels = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy(), "RGB")


def crop_to_fill(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The largest centred part of the image with the wanted aspect, resized to `width` by `height` pixels. No
    margins, no distortion."""
    if width < 1 or height < 1:
        raise ValueError("width and height must be positive")
    scale = min(image.width / width, image.height / height)
    # at most the image itself: where one side fits exactly, the product may round to more
    part_width, part_height = min(image.width, width * scale), min(image.height, height * scale)
    left, top = (image.width - part_width) / 2, (image.height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    return image.convert("RGB").resize((width, height), resample, box=box)


def fit(
    image: Image.Image, width: int, height: int, how: str, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The image at `width` by `height` pixels, RGB.

    how: "crop" keeps the aspect and cuts what stands over at two sides; "pad" keeps the aspect and repeats the border
    pixels at two sides, so that no foreign colour is added; "stretch" keeps all and changes the aspect.
    resample: how pixels are made of pixels.
    """
    if how == "crop":
        return crop_to_fill(image, width, height, resample)
    if width < 1 or height < 1:
        raise ValueError("width and height must be positive")
    rgb = image.convert("RGB")
    if how == "stretch":
        return rgb.resize((width, height), resample)
    if how != "pad":
        raise ValueError(f"there is no way {how!r} to fit an image")
    scale = min(width / rgb.width, height / rgb.height)
    inner = max(1, min(width, round(rgb.width * scale))), max(1, min(height, round(rgb.height * scale)))
    small = rgb.resize(inner, resample)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    padded = Image.new("RGB", (width, height))
    padded.paste(small, (left, top))
    bands = (
        ((0, 0, 1, inner[1]), (0, top, left, top + inner[1])),
        ((inner[0] - 1, 0, inner[0], inner[1]), (left + inner[0], top, width, top + inner[1])),
        ((0, 0, inner[0], 1), (left, 0, left + inner[0], top)),
        ((0, inner[1] - 1, inner[0], inner[1]), (left, top + inner[1], left + inner[0], height)),
    )
    for edge, place in bands:  # the image touches two sides, so there are no corners to fill
        size = place[2] - place[0], place[3] - place[1]
        if size[0] > 0 and size[1] > 0:
            padded.paste(small.crop(edge).resize(size, Image.Resampling.NEAREST), place[:2])
    return padded


def on_latents(mask: Image.Image, height: int, width: int, pixels_per_latent: int, how: str) -> Tensor | float:
    """The share of white at every position of the latents, (1, 1, height, width) in [0, 1]; one number where it is the
    same everywhere.

    The mask's brightness is fitted as an image is (see `fit`), but without sharpening, and averaged over each
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
    """What was painted in the inpaint tab as a grey image, see `to_mask`.

    blur: the radius in pixels of the tab's "Mask blur".
    """
    grey = to_mask(mask)
    grey = ImageOps.invert(grey) if inverted else grey
    return grey.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else grey
