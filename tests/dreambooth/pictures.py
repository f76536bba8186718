"""Photos for tests: made on the spot, each with something to recognise it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.dreambooth.settings import TrainingSettings


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Smooth and without symmetry, so that a turn or a mirror shows, also after JPEG."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    red, green = 255 * x / x.max(), 255 * y / y.max()
    blue = np.full_like(x, (40 + 37 * seed) % 256)
    return Image.fromarray(np.stack([red, green, blue], -1).round().astype(np.uint8))


def put(folder: Path, name: str, width: int = 64, height: int = 48, seed: int = 0, **saved: Any) -> Path:
    path = folder / name
    picture(width, height, seed).save(path, **saved)
    return path


def asked(**changes: Any) -> TrainingSettings:
    """Settings of a training; places that are not there, as nothing here goes to them."""
    values: dict[str, Any] = {
        "photos": Path("photos"),
        "base": Path("base.safetensors"),
        "out": Path("out"),
        "name": "test",
        "class_noun": "dog",
        "identifier": "ohwx",
    }
    return TrainingSettings(**{**values, **changes})


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of the channels, 0 to 255."""
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean())
