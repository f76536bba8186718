"""Translations of the pack and of extensions, as the page gets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from standalone.host import errors, localization, paths

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an extension's translations, after the pack's."""
    folder = tmp_path / "words" / "localizations"
    folder.mkdir(parents=True)
    folders = (REPO, folder.parent)
    monkeypatch.setattr(paths, "extensions", [paths.Extension(place.name, str(place)) for place in folders])
    return folder


def test_files_of_one_name_are_merged_and_an_extensions_entry_wins(extension: Path) -> None:
    entries = {"Width": "横幅", "Sampling steps": "サンプリングステップ", "rtl": True, "Height": ""}
    (extension / "ja_JP.json").write_text(json.dumps(entries), encoding="utf-8")
    found = localization.translations("ja_JP")
    assert (found["Width"], found["Sampling steps"], found["Height"]) == ("横幅", "サンプリングステップ", "高さ")
    assert found["Negative prompt"] == "ネガティブプロンプト"
    assert "rtl" not in found


def test_the_names_are_those_of_the_files(extension: Path) -> None:
    (extension / "eo.json").write_text("{}", encoding="utf-8")
    assert localization.names() == ["None", "de_DE", "eo", "ja_JP"]


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_left_out(extension: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(errors, "report", lambda message, **more: told.append(message))
    (extension / "ja_JP.json").write_bytes(text)
    assert localization.translations("ja_JP")["Width"] == "幅"
    assert len(told) == 1


def test_english_and_unknown_names_have_no_translations(extension: Path) -> None:
    for name in ("None", "../ja_JP", "xx"):
        assert localization.script(name) == "window.localization = {};\n"
