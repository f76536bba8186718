"""The controls' handlers: the lists as HTML, the plain line; presets, under any name and never outside their folder."""

from __future__ import annotations

import json
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.fabric.page import PageHandlers, board_html
from lib_methods.fabric.presets import PresetError, PresetFolder
from lib_methods.fabric.settings import CONTROLS, FabricSettings
from lib_methods.pictures.composites import Composites
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.widgets import status_html
from tests.fabric.test_settings import fabric_settings
from tests.shared.pictures import data_url, noisy

UNKNOWN = "0" * 64


class Elements(HTMLParser):
    """All elements with their attributes, checked to be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.found if name in (attributes.get("class") or "").split()]


@pytest.fixture
def handlers(tmp_path: Path) -> PageHandlers:
    return PageHandlers(
        ImageStore(tmp_path / "images"), PresetFolder(tmp_path / "presets"), Composites(), lambda *_: "the line"
    )


def values(**changed: Any) -> list[Any]:
    """The page's control values: defaults, switched on, with changes."""
    return list({"enabled": True, **CONTROLS.defaults, **changed}.values())


def test_the_board_shows_each_picture_with_its_weight(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    one, two = store.add(noisy(1)), store.add(noisy(2))
    board = Elements(board_html(f"{one}:0.5", f"{two}", store, "img2img"))
    assert [card["data-fabric-id"] for card in board.of_class("steer-fabric-card")] == [one, two]
    assert [panel["data-fabric-list"] for panel in board.of_class("steer-fabric-panel")] == ["likes", "dislikes"]
    weights = [attributes["value"] for tag, attributes in board.found if attributes.get("type") == "number"]
    assert weights == ["0.5", "1"]
    images = [attributes["src"] or "" for tag, attributes in board.found if tag == "img"]
    assert len(images) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert str(tmp_path) not in board_html(one, two, store, "img2img")


def test_the_board_has_a_name_for_every_control(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    board = Elements(board_html(store.add(noisy()), "", store, "txt2img"))
    controls = [attributes for tag, attributes in board.found if tag in ("button", "input")]
    assert all(attributes.get("aria-label") or attributes.get("title") for attributes in controls)


def test_a_picture_that_is_gone_is_shown_as_such(tmp_path: Path) -> None:
    board = Elements(board_html(UNKNOWN, "", ImageStore(tmp_path), "txt2img"))
    assert board.of_class("steer-fabric-missing")
    assert "missing" in board.text


@pytest.mark.parametrize("line", ["<script>alert(1)</script>", "../../etc/passwd", '"><img src=x onerror=alert(1)>'])
def test_the_board_shows_nothing_that_is_no_list(tmp_path: Path, line: str) -> None:
    store = ImageStore(tmp_path)
    assert board_html(line, line, store, "txt2img") == board_html("", "", store, "txt2img")


def test_the_line_is_escaped() -> None:
    assert "<script>" not in status_html("<script>")


def test_a_preset_restores_every_control(handlers: PageHandlers) -> None:
    liked = handlers.store.add(noisy())
    changed = values(
        likes=f"{liked}:2",
        strength=0.3,
        start=0.2,
        end=0.4,
        negative_weight=0.1,
        min_strength=0.05,
        weighting="as published",
        colour_correction=False,
        detail="half",
        hires="off",
        hires_strength=0.5,
        cache_limit_mb=7,
        seed=9,
        reference_levels="every step",
        layers="fine",
        adain=True,
        consistent_batch=True,
    )
    dropdown, status = handlers.save_preset(" My preset ", *changed)
    assert dropdown["value"] == "My preset"
    assert dropdown["choices"] == ["My preset"]
    assert "Saved preset" in status
    *loaded, status = handlers.load_preset("My preset", *values())
    assert loaded == changed
    assert status == "the line"
    assert handlers.refresh_presets()["choices"] == ["My preset"]
    dropdown, status = handlers.delete_preset("My preset")
    assert dropdown["choices"] == []
    assert "Deleted preset" in status


def test_one_reference_level_suggests_its_strength_unless_another_was_set(handlers: PageHandlers) -> None:
    assert handlers.suggest_strength("one", 0.8) == 0.5
    assert handlers.suggest_strength("six", 0.5) == 0.8
    assert handlers.suggest_strength("one", 0.7) == 0.7


@pytest.mark.parametrize("name", [None, "", "gone", "../../etc/passwd", "\x00"])
def test_preset_mistakes_are_told_and_change_nothing(handlers: PageHandlers, name: Any) -> None:
    *loaded, status = handlers.load_preset(name, *values(strength=0.33))
    assert loaded == values(strength=0.33)
    assert "steer-problem" in status
    assert "steer-problem" in handlers.delete_preset(name)[1]


def test_a_preset_of_impossible_settings_is_not_saved(handlers: PageHandlers) -> None:
    status = handlers.save_preset("x", *values(start=0.9, end=0.1))[1]
    assert "is after End" in status
    assert handlers.presets.names() == ()


def test_a_message_changes_the_list_it_names(handlers: PageHandlers) -> None:
    add = json.dumps({"nonce": "1", "actions": [{"do": "add", "list": "likes", "image": data_url(noisy())}]})
    clear = json.dumps({"nonce": "2", "actions": [{"do": "clear", "list": "likes"}]})
    likes, dislikes, _ = handlers.receive(add, "", UNKNOWN)
    assert (len(likes), dislikes) == (64, UNKNOWN)
    assert handlers.receive(clear, likes, dislikes)[:2] == ["", UNKNOWN]


@pytest.mark.parametrize("message", ["", None, "rubbish"])
def test_a_message_that_is_none_changes_nothing(handlers: PageHandlers, message: Any) -> None:
    assert handlers.receive(message, UNKNOWN, "")[:2] == [UNKNOWN, ""]


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
    assert folder.names() == (kept,)
    assert folder.load(kept) == wanted == folder.load(name)
    assert folder.delete(name)
    assert folder.names() == ()
    assert not folder.delete(name)


@given(name=st.text(max_size=100), wanted=fabric_settings())
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
            assert folder.clean_name(kept) == kept
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
    assert folder.names() == ("x",)
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
    (listed,) = set(folder.names()) - {"good"}
    with pytest.raises(PresetError, match="damaged"):
        folder.load(listed)
    assert folder.delete(listed)
    assert folder.names() == ("good",)


def test_a_preset_that_is_not_there_gives_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match='no preset "x"'):
        PresetFolder(tmp_path / "none").load("x")


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    PresetFolder(tmp_path).save("x", FabricSettings(strength=0.25))
    content = json.loads(next(tmp_path.iterdir()).read_text(encoding="utf-8"))
    assert content["settings"]["strength"] == 0.25
