"""Reads what the API answers."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def decode(text: str) -> Image.Image:
    """The image in base64 text."""
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def pixels(text: str) -> np.ndarray:
    """Its pixels, (H, W, 3)."""
    return np.asarray(decode(text).convert("RGB"))
