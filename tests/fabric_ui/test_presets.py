"""Presets come back as they were saved, under any name a person may give, and never outside their folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.fabric.presets import PresetError, PresetFolder, clean_name
from lib_methods.fabric.settings import FabricSettings
from tests.fabric_ui.strategies import fabric_settings

HOSTILE = [
    "../../../etc/passwd",
    "..",
    ".",
    "/etc/passwd",
    "C:\\Windows\\x",
    "a/b",
    "a\\b",
    "CON",
    "con.json",
    "NUL",
    "COM1",
    "LPT9",
    "aux ",
    "trailing.",
    "~root",
    "$HOME",
    "猫と犬",
    "ünïcödé",
    "👍🏽 likes",
    "x" * 80,
    "%2e%2e%2f",
    "a:b|c<d>e?f*g\"h'",
    "-rf",
    ".hidden",
]
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


def assert_one_safe_file(root: Path) -> None:
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path.parent for path in files] == [root / "presets"]
    name = files[0].name
    assert name.isascii()
    assert len(name) < 120
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
    assert name.split(".")[0] not in RESERVED
    assert name.endswith(".json")
    assert not name.startswith(".")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_ordinary_names(tmp_path: Path, name: str) -> None:
    folder = PresetFolder(tmp_path / "presets")
    wanted = FabricSettings(strength=0.3)
    kept = folder.save(name, wanted)
    assert_one_safe_file(tmp_path)
    assert folder.list() == (kept,)
    assert folder.load(kept) == wanted == folder.load(name)
    assert folder.delete(name)
    assert folder.list() == ()
    assert not folder.delete(name)


@given(name=st.text(max_size=100), wanted=fabric_settings())
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_name_that_works_or_a_sentence(name: str, wanted: FabricSettings) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = PresetFolder(Path(root) / "presets")
        try:
            kept = folder.save(name, wanted)
        except PresetError as error:
            kept, sentence = "", str(error)
        else:
            sentence = ""
        if kept:
            assert folder.load(kept) == wanted
            assert clean_name(kept) == kept
            assert_one_safe_file(Path(root))
        else:
            assert sentence.endswith(".")
            assert not list(Path(root).iterdir())


def test_names_differing_in_case_are_two_presets(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    folder.save("Cat", FabricSettings(strength=0.1))
    folder.save("cat", FabricSettings(strength=0.2))
    assert folder.load("Cat").strength == 0.1
    assert folder.load("cat").strength == 0.2
    assert len({path.name.casefold() for path in tmp_path.iterdir()}) == 2


def test_saving_again_replaces(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    folder.save("x", FabricSettings(strength=0.1))
    folder.save("x", FabricSettings(strength=0.2))
    assert folder.list() == ("x",)
    assert folder.load("x").strength == 0.2


@pytest.mark.parametrize("name", ["", "   ", "a\x00b", "a\nb", "x" * 81, None, 7, "\u202eevil"])
def test_names_that_nobody_could_type_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PresetError, match=r"\.$"):
        PresetFolder(tmp_path).save(name, FabricSettings())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"fabric_preset": 1, "name": "x"}',
        b'{"fabric_preset": 1, "name": "x", "settings": {"strength": "a lot"}}',
        b'{"fabric_preset": 1, "name": "x", "settings": {"likes": [{"image": "../../etc/passwd"}]}}',
        b'{"fabric_preset": 1, "name": "x", "settings": {"likes": {"a": 1}}}',
        b'{"fabric_preset": 1, "name": "x", "settings": {"evil": 1}}',
        b'{"fabric_preset": 2, "name": "x", "settings": {}}',
        b"x" * (2**20 + 1),
    ],
)
def test_a_damaged_file_gives_a_sentence_and_can_be_deleted(tmp_path: Path, content: bytes) -> None:
    folder = PresetFolder(tmp_path)
    folder.save("x", FabricSettings())
    folder.save("good", FabricSettings())
    path = next(path for path in tmp_path.iterdir() if path.name.startswith("preset_x-"))
    path.write_bytes(content)
    with pytest.raises(PresetError, match="damaged"):
        folder.load("x")
    (listed,) = set(folder.list()) - {"good"}
    with pytest.raises(PresetError, match="damaged"):
        folder.load(listed)
    assert folder.delete(listed)
    assert folder.list() == ("good",)


def test_a_preset_that_is_not_there_gives_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match='no preset "x"'):
        PresetFolder(tmp_path / "none").load("x")


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    PresetFolder(tmp_path).save("x", FabricSettings(strength=0.25))
    content = json.loads(next(tmp_path.iterdir()).read_text(encoding="utf-8"))
    assert content["settings"]["strength"] == 0.25
