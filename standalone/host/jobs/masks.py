"""Masks: reading and blurring them, the region to crop to, filling what is masked, pasting the result back."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from lib_methods.pictures.convert import to_mask, to_rgba
from standalone.host import images

Box = tuple[int, int, int, int]


def get_crop_region_v2(mask: Any, pad: int = 0) -> Box | None:
    """The box (x1, y1, x2, y2) around all that is masked, `pad` pixels larger; None for an empty mask."""
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    box = image.getbbox()
    if box is None:
        return None
    return max(box[0] - pad, 0), max(box[1] - pad, 0), min(box[2] + pad, image.width), min(box[3] + pad, image.height)


def get_crop_region(mask: Any, pad: int = 0) -> Box:
    """As get_crop_region_v2; an empty mask gives an empty box, grown by `pad`."""
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    box = get_crop_region_v2(image, pad)
    if box is not None:
        return box
    return max(image.width - pad, 0), max(image.height - pad, 0), min(pad, image.width), min(pad, image.height)


def _widen(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """The span low..high made `length` long about its middle, moved into 0..limit, cut there if it is longer."""
    low -= (length - (high - low)) // 2
    low = max(0, min(low, limit - length))
    return low, min(low + length, limit)


def expand_crop_region(
    crop_region: Box, processing_width: int, processing_height: int, image_width: int, image_height: int
) -> Box:
    """The region grown to the shape (width to height) that it will be processed in, within the image."""
    x1, y1, x2, y2 = crop_region
    width, height = x2 - x1, y2 - y1
    if width * processing_height > height * processing_width:
        y1, y2 = _widen(y1, y2, int(width * processing_height / processing_width), image_height)
    else:
        x1, x2 = _widen(x1, x2, int(height * processing_width / processing_height), image_width)
    return x1, y1, x2, y2


def fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """`image` with what is masked (white in `mask`) painted over by colours from around it."""
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    filled = Image.new("RGBA", image.size)
    # from far to near: each blur reaches less far and lies above the one before
    for radius, repeats in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


def create_binary_mask(image: Image.Image, round: bool = True) -> Image.Image:
    """A mask as mode L: the alpha channel, if there is one in use, else the brightness."""
    plain = to_rgba(image)
    mask = to_mask(plain)
    return mask.point(lambda value: 255 if value > 128 else 0) if round and plain.mode == "RGBA" else mask


def gaussian_blur(mask: Image.Image, sigma: float, axis: int) -> Image.Image:
    """`mask` (mode L) blurred along one axis (0 down, 1 across) by a Gaussian cut at 2.5 sigma, mirrored at edges."""
    if sigma <= 0:
        return mask
    radius = int(2.5 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    values = np.asarray(mask, dtype=np.float64)
    padding = [(0, 0), (0, 0)]
    padding[axis] = (radius, radius)
    padded = np.pad(values, padding, mode="reflect" if radius < values.shape[axis] else "edge")
    length = values.shape[axis]
    blurred = sum(
        weight * np.take(padded, range(shift, shift + length), axis=axis) for shift, weight in enumerate(weights)
    )
    return Image.fromarray(np.clip(np.rint(blurred), 0, 255).astype(np.uint8))


def apply_overlay(
    image: Image.Image, paste_loc: tuple[int, int, int, int] | None, overlay: Image.Image | None
) -> tuple[Image.Image, Image.Image]:
    """Pastes `image` at (x, y, w, h) into the whole image and lays the unmasked original over it.

    Returns the result, and the pasted image without the overlay.
    """
    if overlay is None:
        return image, image.copy()
    if paste_loc is not None:
        x, y, width, height = paste_loc
        base = Image.new("RGBA", overlay.size)
        base.paste(images.resize_image(1, image, width, height), (x, y))
        image = base
    result = image.convert("RGBA")
    result.alpha_composite(overlay)
    return result.convert("RGB"), image.copy()
