"""The library keeps directions under any name, never leaves its folder, lives with damaged files; its buttons."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.denoiser import Unsupported
from lib_methods.hosts.a1111.text import interrogator
from lib_methods.pix2pix_zero.directions import DirectionError, Origin, make_direction
from lib_methods.pix2pix_zero.library import DirectionLibrary, Listed, save_direction
from lib_methods.pix2pix_zero.page import LibraryHandlers, caption_of
from tests.pix2pix_zero.directions.test_directions import Encoder, direction
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, edit
from tests.shared.jobs import REPO, loaded, same
from tests.standalone.conftest import Running

ODD_NAMES = [
    "../cat",
    "CON",
    "a/b\\c",
    "猫 → 犬",
    "Cat",
    "cat",
    "x.safetensors",
    "direction_x-0123456789abcdef",
    ".",
    "é" * 80,
]


def embed(sentences: list[str]) -> torch.Tensor:
    return torch.stack([Encoder().alone(sentence.split()[-1]) for sentence in sentences])


def test_what_is_built_can_be_listed_got_and_deleted(tmp_path):
    library = DirectionLibrary(tmp_path / "directions")
    assert library.list() == () and library.delete("cat to dog") is False
    built = make_direction("cat", "dog", ["a cat"], ["a dog", "one dog"], embed, clip_skip=2, model="m")
    assert library.save(" cat to dog ", built) == "cat to dog"
    assert library.list() == (Listed("cat to dog", built.origin, 8),)
    assert torch.equal(library.get("cat to dog").context, built.context)
    assert library.delete("cat to dog") is True and library.list() == ()
    with pytest.raises(DirectionError, match="no direction"):
        library.get("cat to dog")


def test_any_name_is_kept_and_none_leaves_the_folder(tmp_path):
    library = DirectionLibrary(tmp_path / "in" / "directions")
    for number, name in enumerate(ODD_NAMES):
        library.save(name, direction(seed=number))
    assert {entry.name for entry in library.list()} == set(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        assert torch.equal(library.get(name).context, direction(seed=number).context)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    files = list((tmp_path / "in" / "directions").iterdir())
    assert len(files) == len(ODD_NAMES) and all(file.name.isascii() and len(file.name) < 100 for file in files)
    assert len({file.name.casefold() for file in files}) == len(files)  # on disks that know no case, either


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=90))
def test_any_text_for_a_name_is_used_or_refused_with_a_sentence(tmp_path_factory, name):
    library = DirectionLibrary(tmp_path_factory.mktemp("directions"))
    try:
        kept = library.save(name, direction())
    except DirectionError:
        return
    assert [entry.name for entry in library.list()] == [kept] and kept == library.clean_name(name)
    assert library.delete(name)


@pytest.mark.parametrize("name", ["", "  ", None, 3, "x" * 81, "a\nb", "a\u202eb", "\ud800"])
def test_names_that_cannot_be_used_are_refused(tmp_path, name):
    library = DirectionLibrary(tmp_path)
    for use in (lambda: library.save(name, direction()), lambda: library.get(name), lambda: library.delete(name)):
        with pytest.raises(DirectionError, match="name"):
            use()


@pytest.mark.parametrize("name", ["../secret", "../secret.safetensors", "secret", "..", "/etc/passwd", "C:\\x"])
def test_a_direction_outside_of_the_folder_is_neither_found_nor_deleted(tmp_path, name):
    save_direction(direction(), tmp_path / "secret.safetensors", "x")
    library = DirectionLibrary(tmp_path / "directions")
    library.save("cat", direction())
    with pytest.raises(DirectionError, match="no direction"):
        library.get(name)
    assert library.delete(name) is False and (tmp_path / "secret.safetensors").is_file()


def test_saving_again_replaces(tmp_path):
    library = DirectionLibrary(tmp_path)
    library.save("cat", direction(seed=1))
    library.save("cat ", direction(seed=2))
    assert len(library.list()) == 1
    assert torch.equal(library.get("cat").context, direction(seed=2).context)


def test_damaged_files_are_listed_and_can_be_deleted(tmp_path):
    library = DirectionLibrary(tmp_path)
    library.save("cat", direction())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / ".saving-x.safetensors").write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    listed = library.list()
    assert len(listed) == 2 and all(entry.origin is None and entry.text_width is None for entry in listed)
    for entry in listed:
        with pytest.raises(DirectionError, match="damaged"):
            library.get(entry.name)
        assert library.delete(entry.name)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".saving-x.safetensors", "folder.safetensors"}
    library.save("cat", direction())
    assert library.get("cat").origin == direction().origin


def test_files_that_a_user_puts_there_are_found_by_the_name_they_hold_or_their_own(tmp_path):
    library = DirectionLibrary(tmp_path)
    save_direction(direction(seed=1), tmp_path / "from_a_friend.safetensors", "day to night")
    save_direction(direction(seed=2), tmp_path / "nameless.SAFETENSORS")
    library.save("cat", direction(seed=3))
    (saved,) = tmp_path.glob("direction_*")
    shutil.copy(saved, tmp_path / "a copy.safetensors")
    names = [entry.name for entry in library.list()]
    assert names == ["a copy", "cat", "day to night", "nameless"]
    for number, name in ((1, "day to night"), (2, "nameless"), (3, "cat"), (3, "a copy")):
        assert torch.equal(library.get(name).context, direction(seed=number).context)
    library.save("day to night", direction(seed=4))
    assert torch.equal(library.get("day to night").context, direction(seed=4).context)
    assert library.delete("day to night") and library.delete("a copy") and library.delete("cat")
    assert library.get("day to night").origin == Origin("cat", "dog", 3, 4, 2, "some model")  # the friend's is left


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
