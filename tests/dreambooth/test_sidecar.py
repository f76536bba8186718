"""The card beside a result is what the WebUI reads, and keeps what its owner wrote."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.output.delivery import write_sidecar


def card(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("family", "version"), [("sd1", "SD1"), ("sd2", "SD2"), ("sdxl", "SDXL"), ("x", "Unknown")])
def test_the_card_has_the_webuis_words(tmp_path: Path, family: str, version: str) -> None:
    result = tmp_path / "out" / "my dog v1.5.safetensors"
    files = write_sidecar(
        result,
        family=family,
        activation="ohwx dog",
        description="Bélla",
        weight=0.8,
        preview=Image.new("RGBA", (8, 4), (255, 0, 0, 255)),
    )
    assert [path.name for path in files] == ["my dog v1.5.json", "my dog v1.5.preview.png"]
    assert card(files[0]) == {
        "description": "Bélla",
        "sd version": version,
        "activation text": "ohwx dog",
        "preferred weight": 0.8,
        "notes": "",
    }
    with Image.open(files[1]) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (8, 4))


def test_what_the_owner_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "dog.json"
    path.write_text(
        json.dumps({"activation text": "old", "negative text": "blurry", "notes": "for the calendar"}), encoding="utf-8"
    )
    files = write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="ohwx dog")
    assert files == [path]
    found = card(path)
    assert (found["activation text"], found["negative text"], found["notes"]) == (
        "ohwx dog",
        "blurry",
        "for the calendar",
    )
    write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="ohwx dog", notes="800 steps")
    assert card(path)["notes"] == "800 steps"


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{broken", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_card_that_cannot_be_read_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dog.json").write_bytes(content)
    write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="ohwx dog")
    assert card(tmp_path / "dog.json")["activation text"] == "ohwx dog"


def test_a_full_disk_leaves_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DreamBoothError, match="dog.json cannot be written: No space left"):
        write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="new")
    assert card(tmp_path / "dog.json")["activation text"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["dog.json"]
