"""The list of all images: order, search, and how many files are opened for it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from standalone.history import index, texts
from standalone.history.files import Gone
from standalone.history.index import History
from tests.history.conftest import Save

STEPS = "Steps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


def names(history: History, query: str = "", **how: Any) -> list[str]:
    return [file.name for file in history.page(query, **how).files]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened as images."""
    found: list[Path] = []
    open_image = texts.open_image

    def opening(path: Any) -> Any:
        found.append(path)
        return open_image(path)

    monkeypatch.setattr(texts, "open_image", opening)
    return found


def test_the_newest_image_comes_first_and_only_images_are_listed(history: History, save: Save, outputs: Path):
    for name in ("txt2img-images/b.png", "img2img-images/2024/a.jpg", "c.webp"):
        save(name)
    (outputs / "txt2img-images" / "b.txt").write_text("text")
    save(".hidden/x.png")
    save(".saving.png")
    (outputs / "folder.png").mkdir()
    assert names(history) == ["txt2img-images/b.png", "img2img-images/2024/a.jpg", "c.webp"]
    save("new.png")
    os.utime(outputs / "new.png")
    assert names(history)[0] == "new.png"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_leads_nowhere(history: History, save: Save, outputs: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(save("a.png"), tmp_path / "elsewhere" / "secret.png")
    (outputs / "linked").symlink_to(tmp_path / "elsewhere")
    (outputs / "linked.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    assert names(history) == ["a.png"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["a.png", "b.jpg", "猫.webp"]),
        ("cat", ["a.png"]),
        ("CAT red", ["a.png"]),
        ("cat dog", []),
        ('"red cat"', ["a.png"]),
        ('"cat red"', []),
        ("seed: 22", ["b.jpg"]),
        ("b.jpg", ["b.jpg"]),
        ("2023-11-14", ["a.png", "b.jpg", "猫.webp"]),
        ("猫", ["猫.webp"]),
        ("ﾈｺ", ["猫.webp"]),
        ("%", []),
        ("_", []),
        ("' OR 1=1 --", []),
        ('"', []),
        ("   ", ["a.png", "b.jpg", "猫.webp"]),
    ],
)
def test_a_search_finds_all_of_its_words_in_infotext_name_and_date(
    history: History, save: Save, query: str, found: list[str]
):
    save("a.png", "a red cat\nSteps: 4, Seed: 1")
    save("b.jpg", "a dog\nSteps: 4, Seed: 22")
    save("猫.webp", "ネコ\nSteps: 4, Seed: 3")
    assert names(history, query) == found


def test_an_infotext_beside_the_image_is_searched(history: History, save: Save):
    save("a.bmp", "an owl\nSteps: 4")
    assert names(history, "owl") == ["a.bmp"]


def test_what_extras_did_is_searched_and_is_no_prompt(history: History, outputs: Path):
    done = PngImagePlugin.PngInfo()
    done.add_text("postprocessing", "Postprocess upscale by: 2, Postprocess upscaler: Lanczos")
    (outputs / "extras-images").mkdir()
    Image.new("RGB", (8, 8)).save(outputs / "extras-images" / "photo.png", pnginfo=done)
    assert names(history, '"upscaler: lanczos"') == ["extras-images/photo.png"]
    page = history.page()
    assert page.known[page.files[0].ident].prompt == ""


def test_a_broken_file_is_found_by_its_name(history: History, outputs: Path):
    (outputs / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (outputs / "empty.png").write_bytes(b"")
    assert names(history, "broken") == ["broken.png"]
    assert names(history, "empty") == ["empty.png"]


def test_what_the_page_is_told_of_an_image(history: History, save: Save):
    save("txt2img-images/a.png", f"a cat\nNegative prompt: blurry\n{STEPS}, Denoising strength: 0.5, Hires upscale: 2")
    save("img2img-images/b.png", None)
    save("c.png", f"a cat\n{STEPS}, Denoising strength: 0.5")
    save("txt2img-grids/grid-0001.png", f"a cat\n{STEPS}")
    save("d.png", f"a cat\n{STEPS}, Script: X/Y/Z plot, X Type: Seed")
    page = history.page()
    found = {file.name: page.known[file.ident] for file in page.files}
    told = {name: (known.prompt, known.tab, known.several) for name, known in found.items()}
    assert told == {
        "txt2img-images/a.png": ("a cat", "txt2img", False),
        "img2img-images/b.png": ("", "img2img", False),
        "c.png": ("a cat", "img2img", False),
        "txt2img-grids/grid-0001.png": ("a cat", "txt2img", True),
        "d.png": ("a cat", "txt2img", True),
    }


def test_of_thousands_of_files_only_those_in_view_are_opened(history: History, save: Save, opened: list[Path]):
    first = save("00000.png")
    for number in range(1, 10_000):
        (first.parent / f"{number:05}.png").hardlink_to(first)
    page = history.page(limit=100)
    assert (page.total, len(page.files), len(opened)) == (10_000, 100, 100)
    assert history.page(limit=100).version == page.version
    assert len(opened) == 100
    assert history.page(offset=9_990, limit=100).version == page.version
    assert len(opened) == 110
    assert history.page(offset=10**9).files == []


def test_a_second_search_opens_no_file_not_even_after_a_restart(
    history: History, save: Save, opened: list[Path], outputs: Path, tmp_path: Path
):
    for number in range(30):
        save(f"{number:02}.png", f"cat number {number}\nSteps: 4")
    assert len(names(history, "cat")) == 30
    assert len(opened) == 30
    assert names(history, "number 17") == ["17.png"]
    again = History(outputs, tmp_path)
    assert names(again, "number 17") == ["17.png"]
    assert len(opened) == 30
    save("17.png", "a dog now, longer than before\nSteps: 4")  # the same name, another file
    assert names(again, "number 17") == []
    assert names(again, "dog") == ["17.png"]
    assert len(opened) == 31


def test_a_long_search_answers_with_what_it_has_found_so_far(
    history: History, save: Save, monkeypatch: pytest.MonkeyPatch
):
    for number in range(25):
        save(f"{number:02}.png")
    monkeypatch.setattr(index, "AT_ONCE", 10)
    monkeypatch.setattr(index, "READ_SECONDS", -1)
    assert history.page("cat").unread == 25
    monkeypatch.setattr(index, "READ_SECONDS", 60)
    page = history.page("cat")
    assert (page.unread, page.total) == (0, 25)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\xff" * 5000, b""])
def test_a_damaged_database_is_made_again(outputs: Path, tmp_path: Path, save: Save, content: bytes):
    save("a.png")
    (tmp_path / "history.sqlite").write_bytes(content)
    assert names(History(outputs, tmp_path), "cat") == ["a.png"]
    with sqlite3.connect(tmp_path / "history.sqlite") as database:
        assert database.execute("SELECT count(*) FROM texts").fetchone() == (1,)


def test_without_a_place_for_the_database_the_search_works(outputs: Path, tmp_path: Path, save: Save):
    save("a.png")
    (tmp_path / "history.sqlite").mkdir()
    history = History(outputs, tmp_path)
    assert names(history, "cat") == ["a.png"]
    assert history.page("cat").unread == 0


def test_an_id_is_only_what_the_list_gave(history: History, save: Save):
    path = save("a.png")
    ident = history.page().files[0].ident
    assert history.find(ident).path == str(path)
    for other in ("", "a.png", "../a.png", str(path), ident.upper(), ident[:-1], "0" * 24):
        with pytest.raises(Gone):
            history.find(other)
    path.unlink()
    with pytest.raises(Gone, match="no longer there"):
        history.find(ident)
