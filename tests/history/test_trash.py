"""Deleted images can be had back for 30 days."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lib_methods.errors import UserError
from standalone.history.files import Gone
from standalone.history.index import History
from standalone.history.trash import KEPT_SECONDS, Trash
from tests.history.conftest import Save


def idents(history: History, in_trash: bool = False) -> list[str]:
    return [file.ident for file in history.page(in_trash=in_trash).files]


def test_a_deleted_image_comes_back_as_it_was(history: History, save: Save, outputs: Path):
    path = save("txt2img-images/a.bmp")
    before, beside = path.read_bytes(), path.with_suffix(".txt").read_text()
    (ident,) = idents(history)
    history.delete(ident)
    assert not path.exists() and not path.with_suffix(".txt").exists()
    assert (idents(history), idents(history, in_trash=True), history.page().in_trash) == ([], [ident], 1)
    assert history.find(ident).name == "txt2img-images/a.bmp"  # it can still be looked at
    history.restore(ident)
    assert (path.read_bytes(), path.with_suffix(".txt").read_text()) == (before, beside)
    assert idents(history) == [ident]  # and has its thumbnail and its place in the list
    assert not (outputs / ".trash").exists()


def test_what_has_taken_its_place_meanwhile_is_not_written_over(history: History, save: Save, outputs: Path):
    path = save("a.png", colour=(1, 1, 1))
    first = path.read_bytes()
    history.delete(*idents(history))
    other = save("a.png", colour=(2, 2, 2)).read_bytes()
    history.restore(*idents(history, in_trash=True))
    assert (path.read_bytes(), (outputs / "a-1.png").read_bytes()) == (other, first)


def test_the_second_of_two_pages_hears_that_it_is_gone(history: History, save: Save):
    path = save("a.png")
    (ident,) = idents(history)
    history.delete(ident)
    with pytest.raises(Gone):
        history.delete(ident)
    history.restore(ident)
    with pytest.raises(Gone):
        history.restore(ident)
    path.unlink()
    with pytest.raises(Gone):
        history.delete(ident)
    assert not history.trash.folder.exists()


def test_emptying_deletes_for_good(history: History, save: Save, outputs: Path):
    for name in ("a.png", "b/c.png"):
        save(name)
    save("kept.png")
    for file in history.page().files[:2]:
        history.delete(file.ident)
    (outputs / ".trash" / "notes.txt").write_text("the user's own")
    assert history.empty_trash() == 2
    assert history.empty_trash() == 0
    assert [file.name for file in history.page().files] == ["kept.png"]
    assert [path.name for path in (outputs / ".trash").iterdir()] == ["notes.txt"]


def test_after_thirty_days_it_is_emptied_by_itself(history: History, save: Save, outputs: Path):
    now = 1_800_000_000.0
    trash = Trash(outputs, lambda: now)
    save("a.png")
    save("b.png")
    first, second = history.page().files
    trash.put(first)
    now += KEPT_SECONDS - 10
    trash.put(second)
    assert [file.name for file in trash.files()] == ["b.png", "a.png"]
    now += 20
    trash.sweep()
    assert [file.name for file in trash.files()] == ["b.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not read-only on Windows")
def test_a_folder_that_cannot_be_written_costs_a_sentence(
    history: History, save: Save, monkeypatch: pytest.MonkeyPatch
):
    path = save("a.png")
    (ident,) = idents(history)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    if os.geteuid():
        path.parent.chmod(0o500)
    else:
        monkeypatch.setattr("standalone.history.trash.shutil.move", refuse)  # root may write everywhere
    try:
        with pytest.raises(UserError, match=r"^a\.png could not be moved to the trash\. You may not have"):
            history.delete(ident)
    finally:
        path.parent.chmod(0o700)
    assert path.exists() and idents(history) == [ident]
    assert not history.trash.folder.exists()
