"""Grids and comparison strips: many images in one, which nobody means when they like an image."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.pictures.convert import DECODE_ERRORS, to_rgb

MARK = "composite"
"""The PNG text by which a method marks an image as showing several."""
REFUSAL = "This is a grid of several images. Choose a single image instead."
_REMEMBERED = 64
_SIDE = 16  # pixels of the copies by which grids are known again
_JPEG_NOISE = 4.0  # of 255, the mean difference that a lossy format leaves in such a copy
_GRID_TEXT = re.compile(r"(?:^|, )(?:Script: X/Y/Z plot|[XYZ] Values: )", re.MULTILINE)
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286


class Composites:
    """The grids that the last jobs made. Known again in any file format, by size and look. Safe to use from threads."""

    def __init__(self) -> None:
        self._known: deque[tuple[tuple[int, int], np.ndarray[Any, Any]]] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def remember(self, images: Sequence[Any], first: int) -> None:
        """Take note of a finished job's images, of which those before number `first` are grids. A grid of one image is
        that image."""
        single = {image.size for image in images[first:] if isinstance(image, Image.Image)}
        for image in images[:first]:
            if isinstance(image, Image.Image) and image.size not in single:
                with self._lock:
                    self._known.append((image.size, _look(image)))

    def holds(self, image: Image.Image) -> bool:
        """Whether an opened image is a grid or a strip: its texts say so, or a job made it. Raises `ImageError`."""
        if MARK in image.info or _GRID_TEXT.search(_infotext(image)):
            return True
        with self._lock:
            similar = [look for size, look in self._known if size == image.size]
        return bool(similar) and min(np.abs(_look(image) - look).mean() for look in similar) < _JPEG_NOISE


def _look(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(to_rgb(image).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)


def _infotext(image: Image.Image) -> str:
    """What a PNG has under "parameters", or the comment in Exif as the WebUI writes it."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    try:
        comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except DECODE_ERRORS:
        return ""
    return comment[8:].decode("utf-16-be", "ignore") if isinstance(comment, bytes) and comment[:7] == b"UNICODE" else ""
