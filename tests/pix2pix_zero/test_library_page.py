"""The library of directions and the caption's button on the page: their handlers, and a person's round in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lib_methods.denoiser import Unsupported
from lib_methods.hosts.a1111.text import interrogator
from lib_methods.pix2pix_zero.page import LibraryHandlers, caption_of
from tests.fabric_ui.test_browser_like import Visitor, url, visit
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, edit
from tests.shared.jobs import REPO, loaded, same
from tests.standalone.conftest import Running

__all__ = ["url", "visit"]
LIBRARY = "#pix2pix_zero_txt2img_library"


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


@pytest.fixture
def script(host: Running) -> ModuleType:
    return loaded("pix2pix_zero.py")


@pytest.fixture
def handlers(script: ModuleType) -> LibraryHandlers:
    return LibraryHandlers(script.WORKSHOP)


def problem(line: str) -> bool:
    return "steer-problem" in line


def test_each_button_keeps_or_says_why_not(handlers: LibraryHandlers, tmp_path: Path) -> None:
    build = lambda name, source="cat", text="": handlers.build(name, source, "dog", "object", text, "", "built-in")  # noqa: E731
    update, line = build("cat to dog")
    assert (update["value"], "cat to dog" in update["choices"]) == ("cat to dog", True)
    assert not problem(line)
    for name, source, text, part in (
        ("", "cat", "", "a name"),
        ("x", "", "", "Enter what"),
        ("x", "cat", "nothing", "about both words"),
    ):
        _, line = build(name, source, text)
        assert problem(line) and part in line
    line, said = handlers.add("cat to dog", 0.5, "")
    line, _ = handlers.add("cat to dog", -1, line)
    assert line == "cat to dog: 0.5, cat to dog: -1"
    assert handlers.add("cat to dog", 1, "a: 1 |")[0] == "a: 1 | cat to dog: 1"
    assert problem(handlers.add(None, 1, line)[1])
    assert not problem(handlers.combine("back", line)[1])
    assert problem(handlers.combine("back", "")[1])
    assert "cat to dog, 356 and 356 sentences" in handlers.show("cat to dog")
    assert handlers.refresh()["choices"] == ["back", "cat to dog"]
    assert problem(handlers.bring_in("x", None, None)[1])
    file = tmp_path / "rubbish.safetensors"
    file.write_bytes(b"rubbish")
    assert problem(handlers.bring_in("x", SimpleNamespace(name=str(file)), None)[1])  # as gradio 3 hands files over
    assert handlers.delete("back")[0]["choices"] == ["cat to dog"]
    assert problem(handlers.delete("back")[1])
    assert problem(handlers.delete(None)[1])
    handlers.delete("cat to dog")


def test_a_text_file_fills_the_box_or_leaves_it(handlers: LibraryHandlers, tmp_path: Path) -> None:
    file = tmp_path / "cats.txt"
    file.write_text("a cat\nthe cat", encoding="utf-8")
    assert handlers.read(str(file), "old")[0] == "a cat\nthe cat"
    file.write_bytes(b"\x00\x01")
    text, line = handlers.read(str(file), "old")
    assert text == "old" and problem(line)
    assert handlers.read(None, "old")[0] == "old"


def test_a_job_keeps_its_direction_under_a_name(host: Running, script: ModuleType) -> None:
    library = script.WORKSHOP.library
    plain = host.generate(script_args=edit(), **IMG2IMG)
    made = host.generate(script_args=edit(save_as=" kept "), n_iter=2, **IMG2IMG)
    assert plain.infotexts[0] == made.infotexts[0]  # pasting it keeps nothing
    kept = library.get("kept")
    assert (kept.origin.source, kept.origin.target, kept.origin.model) == ("circle", "blue square", "sd1")
    again = host.generate(script_args=edit(directions="kept"), **IMG2IMG)
    assert same(plain, again)
    for fields, sentence in (({"target": "a | b"}, "Only one direction"), ({"save_as": "a|b"}, "must not contain")):
        refused = host.generate(script_args=edit(**{"save_as": "more", **fields}), **TXT2IMG)
        assert sentence in refused.comments
    assert script.WORKSHOP.names() == ["kept"]
    library.delete("kept")


def test_a_folder_that_cannot_be_written_costs_the_edit_and_says_so(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setattr(script, "DIRECTIONS", blocked)
    made = host.generate(script_args=edit(save_as="kept"), **TXT2IMG)
    assert "cannot be saved" in made.comments
    assert str(tmp_path) not in made.comments


def test_the_caption_is_the_hosts_where_it_has_one(
    host: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules import shared

    assert interrogator() is None
    answers = iter(["a cat on a sofa, by somebody, trending", "a cat<error>", ""])
    monkeypatch.setattr(
        shared, "interrogator", SimpleNamespace(interrogate=lambda picture: next(answers)), raising=False
    )
    tell = interrogator()
    assert tell is not None
    picture = Image.new("RGBA", (8, 8))
    assert caption_of(tell, picture, "old")[0] == "a cat on a sofa"
    for _ in range(3):  # the third time it raises
        caption, line = caption_of(tell, picture, "old")
        assert caption == "old" and "could not describe" in line
    with pytest.raises(Unsupported):
        tell(picture)
    assert "Add an image" in caption_of(tell, None, "old")[1]


def test_the_button_is_there_only_where_the_host_can(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    def ids(is_img2img: bool) -> set[Any]:
        made = script.Pix2PixZeroScript()
        made.is_img2img = is_img2img
        with gr.Blocks() as page:
            made.after_component(gr.Image(type="pil"), elem_id="img2img_image")
            made.ui(is_img2img)
        return {block.elem_id for block in page.blocks.values() if "describe" in str(getattr(block, "elem_id", ""))}

    assert ids(True) == set()
    monkeypatch.setattr("lib_methods.hosts.a1111.text.interrogator", lambda: str)
    assert ids(True) == {"pix2pix_zero_img2img_describe"}
    assert ids(False) == set()


@pytest.mark.browser
def test_a_direction_from_the_page(visit: Callable[[], Visitor], script: ModuleType) -> None:
    """Build it, take it into the line, keep the line as one, delete both."""
    page = visit()

    def press(name: str) -> None:
        page.js("arguments[0].click()", page.all(f"#pix2pix_zero_txt2img_{name}")[0])

    def told(part: str) -> None:
        page.wait(lambda: part in page.js(f"return document.querySelector('{LIBRARY}_status').textContent"))

    page.js("document.querySelector('#pix2pix_zero_txt2img .label-wrap').click()")
    page.wait(lambda: page.all("#pix2pix_zero_txt2img_library .label-wrap"))
    page.js(f"document.querySelector('{LIBRARY} .label-wrap').click()")
    page.wait(lambda: page.all("#pix2pix_zero_txt2img_build"))
    press("build")
    told("Give the direction a name")
    page.fill("#pix2pix_zero_txt2img_name textarea, #pix2pix_zero_txt2img_name input", "cat to dog")
    press("build")
    told("Enter what the image shows")
    page.fill("#pix2pix_zero_txt2img_source textarea, #pix2pix_zero_txt2img_source input", "cat")
    page.fill("#pix2pix_zero_txt2img_target textarea, #pix2pix_zero_txt2img_target input", "dog")
    press("build")
    told('"cat to dog" is built')
    press("add")
    told("is used instead of the words")
    page.fill("#pix2pix_zero_txt2img_name textarea, #pix2pix_zero_txt2img_name input", "back")
    press("combine")
    told('"back" is combined')
    assert script.WORKSHOP.names() == ["back", "cat to dog"]
    press("delete")
    told('"back" is deleted')
    assert script.WORKSHOP.names() == ["cat to dog"]
