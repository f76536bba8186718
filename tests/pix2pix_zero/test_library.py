"""The library keeps directions under any name, never leaves its folder, and lives with damaged files."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.pix2pix_zero.directions import DirectionError, Origin, make_direction
from lib_methods.pix2pix_zero.library import DirectionLibrary, Listed, clean_name, save_direction
from tests.pix2pix_zero.test_directions import Encoder, direction

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
    assert [entry.name for entry in library.list()] == [kept] and kept == clean_name(name)
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
