"""Stored pictures, small: within the side asked for, true to the file as it is now, and of stored pictures only."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_methods.pictures.store import ImageStore, StoreError, thumbnail


def shown(url: str) -> Image.Image:
    head, _, body = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.mark.parametrize(("side", "size"), [(50, (50, 25)), (20, (20, 10)), (500, (100, 50))])
def test_the_longer_side_is_at_most_what_was_asked_for(tmp_path: Path, side: int, size: tuple[int, int]) -> None:
    store = ImageStore(tmp_path)
    small = shown(thumbnail(store, store.add(Image.new("RGB", (100, 50), "#c04020")), side))
    assert small.size == size
    assert np.abs(np.asarray(small, int) - (0xC0, 0x40, 0x20)).max() < 5


def test_a_file_that_changed_or_went_is_not_shown_as_it_was(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    name = store.add(Image.new("RGB", (8, 8), "red"))
    thumbnail(store, name, 8)
    store.path(name).write_bytes(b"damaged")
    with pytest.raises(StoreError, match="damaged"):
        thumbnail(store, name, 8)
    store.path(name).unlink()
    with pytest.raises(OSError):
        thumbnail(store, name, 8)


def test_a_path_names_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with pytest.raises(StoreError, match="not by a file name or path"):
        thumbnail(ImageStore(tmp_path / "images"), "../secret", 8)
