"""Small copies: made once, and never more of them than the limit allows."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from lib_methods.pictures.convert import ImageError
from lib_methods.pictures.store import ImageStore
from standalone.history.files import find_images
from standalone.history.index import History
from standalone.history.thumbnails import SIDE, Thumbnails
from tests.history.conftest import Save
from tests.shared.pictures import noisy


def test_a_thumbnail_is_small_and_made_once(history: History, outputs: Path, tmp_path: Path):
    Image.effect_noise((900, 600), 80).save(outputs / "a.png")
    (file,) = history.page().files
    assert history.find_thumbnail(file.ident) is None
    data = history.make_thumbnail(file.ident)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (SIDE, SIDE * 2 // 3))
    assert history.find_thumbnail(file.ident) == data
    assert [path.parent for path in tmp_path.rglob("*.webp")] == [tmp_path / "tmp" / "history"]


def test_with_its_thumbnail_an_image_is_known_to_fabric(history: History, outputs: Path, tmp_path: Path):
    noisy().save(outputs / "a.png")
    (file,) = history.page().files
    assert history.page().known[file.ident].pixels == ""
    history.make_thumbnail(file.ident)
    liked = ImageStore(tmp_path / "feedback").add(outputs / "a.png")
    assert history.page().known[file.ident].pixels == liked


def test_the_folder_keeps_to_its_limit_and_what_was_seen_last_stays(save: Save, outputs: Path, tmp_path: Path):
    for number in range(12):
        save(f"{number}.png")
    files = sorted(find_images(outputs), key=lambda file: int(file.name[:-4]))
    size = len(Thumbnails(tmp_path / "one").make(files[0])[0])
    thumbnails = Thumbnails(tmp_path / "ten", most_bytes=10 * size + size // 2)
    for number, file in enumerate(files):
        thumbnails.make(file)
        os.utime(thumbnails.path(file), (1_000 + number,) * 2)
        if number == 9:
            assert thumbnails.find(files[0]) is not None  # looked at again
    kept = {file.name for file in files if thumbnails.path(file).exists()}
    assert len(kept) <= 10
    assert "0.png" in kept and "1.png" not in kept and "11.png" in kept


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_broken_image_costs_a_sentence(history: History, outputs: Path, content: bytes):
    (outputs / "a.png").write_bytes(content)
    (file,) = history.page().files
    with pytest.raises(ImageError):
        history.make_thumbnail(file.ident)
