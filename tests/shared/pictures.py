"""Small images, and the forms in which they are sent and answered."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.pictures.store import ImageStore


def noisy(seed: int = 0, width: int = 24, height: int = 16) -> Image.Image:
    """An image of random pixels, which nothing but the image itself gives again."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


def as_file(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    with io.BytesIO() as buffer:
        image.save(buffer, format=file_format, **options)
        return buffer.getvalue()


def encoded(image: Image.Image) -> str:
    """A PNG file as base64 text."""
    return base64.b64encode(as_file(image)).decode("ascii")


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + encoded(image)


def stored(store: ImageStore) -> tuple[str, ...]:
    """The ids of all images of a store."""
    return tuple(sorted(path.stem for path in store.folder.glob("*.png")))


def decode(text: str) -> Image.Image:
    """The image in base64 text."""
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def pixels(text: str) -> np.ndarray:
    """Its pixels, (H, W, 3)."""
    return np.asarray(decode(text).convert("RGB"))
