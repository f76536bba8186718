"""Thumbnails of stored images for the page."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from .store import ImageStore


def thumbnail(store: ImageStore, name: str, side: int) -> str:
    """A stored picture as data URL of a JPEG, `side` pixels at most.

    Raises:
        OSError, StoreError: it is not there, or its file is damaged.
    """
    modified = store.path(name).stat().st_mtime_ns
    return _data_url(str(store.folder), name, side, modified)


@lru_cache(maxsize=256)
def _data_url(folder: str, name: str, side: int, modified: int) -> str:
    """`modified` is part of the key, so that a file that changed is read again."""
    image = ImageStore(Path(folder)).load(name)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
