"""Pictures and masks for jobs, and how they are compared."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SAMPLERS = ["DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "Euler a", "Euler", "Heun", "DDIM", "UniPC", "LCM"]


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A red image with a blue circle."""
    image = Image.new("RGB", size, (200, 40, 40))
    ImageDraw.Draw(image).ellipse((10, 10, 40, 40), fill=(30, 30, 220))
    return image


def half_mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White on the left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)
