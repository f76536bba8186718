"""Images in an output folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from standalone.history.index import History
from standalone.host.images import ImageFile as Encoded
from standalone.host.images import encode

Save = Callable[..., Path]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def save(outputs: Path) -> Save:
    """Saves a small image with an infotext; each is a minute older than the one before."""
    count = 0

    def make(
        name: str, text: str | None = "a cat\nSteps: 4, Seed: 1", colour: tuple[int, int, int] = (9, 8, 7)
    ) -> Path:
        nonlocal count
        count += 1
        path = outputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {} if text is None else {"parameters": text}
        made: Encoded = encode(Image.new("RGB", (8, 8), colour), path.suffix, text, texts, 90)
        path.write_bytes(made.data)
        if made.text_is_beside and text is not None:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        os.utime(path, (1_700_000_000 - 60 * count,) * 2)
        return path

    return make


@pytest.fixture
def history(outputs: Path, tmp_path: Path) -> History:
    return History(outputs, tmp_path)
