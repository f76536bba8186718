"""The controls' handlers: the lists as HTML, the plain line, presets."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lib_methods.fabric.page import PageHandlers, board_html
from lib_methods.fabric.presets import PresetFolder
from lib_methods.fabric.settings import CONTROLS
from lib_methods.pictures.composites import Composites
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.widgets import status_html
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


@pytest.mark.parametrize("name", [None, "", "gone", "../../etc/passwd", "\x00"])
def test_preset_mistakes_are_told_and_change_nothing(handlers: PageHandlers, name: Any) -> None:
    *loaded, status = handlers.load_preset(name, *values(strength=0.33))
    assert loaded == values(strength=0.33)
    assert "steer-problem" in status
    assert "steer-problem" in handlers.delete_preset(name)[1]


def test_a_preset_of_impossible_settings_is_not_saved(handlers: PageHandlers) -> None:
    status = handlers.save_preset("x", *values(start=0.9, end=0.1))[1]
    assert "is after End" in status
    assert handlers.presets.list() == ()


def test_a_new_picture_switches_fabric_on_and_nothing_else_switches_it(handlers: PageHandlers) -> None:
    add = json.dumps({"nonce": "1", "actions": [{"do": "add", "list": "likes", "image": data_url(noisy())}]})
    clear = json.dumps({"nonce": "2", "actions": [{"do": "clear", "list": "likes"}]})
    enabled, likes, dislikes, _ = handlers.receive(add, False, "", UNKNOWN)
    assert (enabled, len(likes), dislikes) == (True, 64, UNKNOWN)
    for before in (False, True):
        assert handlers.receive(clear, before, likes, dislikes)[:3] == [before, "", UNKNOWN]


@pytest.mark.parametrize("message", ["", None, "rubbish"])
def test_a_message_that_is_none_changes_nothing(handlers: PageHandlers, message: Any) -> None:
    assert handlers.receive(message, False, UNKNOWN, "")[:3] == [False, UNKNOWN, ""]
