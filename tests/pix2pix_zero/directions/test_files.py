"""Files of directions come back as they were saved; damaged and hostile ones are refused with a sentence."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lib_methods.pix2pix_zero.directions import (
    DirectionError,
    Origin,
)
from lib_methods.pix2pix_zero.library import load_direction, load_original, read_record, save_direction
from tests.pix2pix_zero.directions.test_directions import direction


@pytest.mark.parametrize("vector", [0, 5])
def test_a_file_brings_everything_back_and_is_the_same_every_time(tmp_path, vector):
    one = direction(154, vector=vector, origin=Origin("猫", 'a "dog"', 3, 4, 2, "m"))
    save_direction(one, tmp_path / "new" / "x.safetensors", "my direction")
    again = load_direction(tmp_path / "new" / "x.safetensors")
    assert torch.equal(again.context, one.context) and again.origin == one.origin
    assert (again.vector is None) == (not vector)
    assert read_record(tmp_path / "new" / "x.safetensors") == ("my direction", one.origin, 8)
    save_direction(one, tmp_path / "y.safetensors", "my direction")
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "new" / "x.safetensors").read_bytes()
    assert not list((tmp_path / "new").glob(".saving*"))


def test_whatever_is_in_a_record_can_be_saved_and_read(tmp_path):
    """A checkpoint's name may be any file's name; what cannot be seen would also disturb a page or a console."""
    file = tmp_path / "x.safetensors"
    odd = Origin("\U0001fac6\ud800", "a\u202eb\x1b[2J", 1, 1, 1, "m" * 1000 + "\n")
    save_direction(direction(origin=odd), file)
    assert load_direction(file).origin == odd
    assert (odd.source, odd.target, len(odd.model)) == ("\U0001fac6", "ab[2J", 300)


def test_a_failing_save_leaves_the_older_file_and_no_litter(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_direction(direction(), file)
    before = file.read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(DirectionError, match="cannot be saved"):
        save_direction(direction(seed=1), file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def record(**changed: Any) -> dict[str, str]:
    base: dict[str, Any] = {
        "version": 1,
        "name": "",
        "source": "cat",
        "target": "dog",
        "source_count": 1,
        "target_count": 1,
        "clip_skip": 1,
        "model": "",
        "text_width": 8,
    }
    return {"pix2pix_zero_direction": json.dumps({**base, **changed})}


TABLE = {"context": torch.zeros(77, 8)}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (TABLE, None),
        (TABLE, record(version=2)),
        (TABLE, record(text_width=768)),
        (TABLE, record(source_count="many")),
        (TABLE, record(source_count=10**4000)),
        (TABLE, record(clip_skip=-1)),
        (TABLE, record(source=["cat"])),
        (TABLE, record(target_count=True)),
        (TABLE, {"pix2pix_zero_direction": "[" * 100_000}),
        (TABLE, {"pix2pix_zero_direction": "[]"}),
        (TABLE, {"pix2pix_zero_direction": "{"}),
        (TABLE, {"pix2pix_zero_direction": "1"}),
        ({"other": torch.zeros(77, 8)}, record()),
        ({**TABLE, "more": torch.zeros(1)}, record()),
        ({**TABLE, "vector": torch.zeros(1, 4)}, record()),
        ({**TABLE, "vector": torch.zeros(0)}, record()),
        ({"context": torch.zeros(77, 8, dtype=torch.int32)}, record()),
        ({"context": torch.zeros(1, 77, 8)}, record()),
        ({"context": torch.zeros(0, 8)}, record()),
        ({"context": torch.zeros(5000, 8)}, record()),
        ({"context": torch.full((77, 8), math.nan)}, record()),
    ],
)
def test_safetensors_that_hold_something_else_are_refused(tmp_path, tensors, metadata):
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata)
    with pytest.raises(DirectionError, match=r"^[A-Z].*\.$") as caught:
        load_direction(file)
    assert str(tmp_path) not in str(caught.value)


def header(content: Any, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\x00" * 100,
        header({}, 2**62),
        header([]),
        header({"__metadata__": record(), "context": {"dtype": "F32", "shape": [77, 8], "data_offsets": [0, 10**12]}}),
        header({"__metadata__": record(), "context": {"dtype": "F32", "shape": [10**9, 8], "data_offsets": [0, 0]}}),
        header({"__metadata__": {"pix2pix_zero_direction": 3}, "context": {}}),
        b"cos\nsystem\n(S'exit 1'\ntR.",
    ],
)
def test_damaged_and_hostile_files_are_refused(tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    for reader in (load_direction, read_record):
        with pytest.raises(DirectionError, match=r"^[A-Z].*\.$"):
            reader(file)


def test_files_that_are_missing_or_too_large_are_refused(tmp_path):
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(33 * 2**20)
    for place, told in (
        (large, "too large"),
        (tmp_path, "no such"),
        (tmp_path / "none", "no such"),
        ("a\0b", "no such"),
    ):
        with pytest.raises(DirectionError, match=told):
            load_direction(place)
        with pytest.raises(DirectionError, match=told):
            load_original(place, place)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 3000), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), max_size=4))
def test_a_file_with_a_few_wrong_bytes_is_read_or_refused(tmp_path_factory, cut, flips):
    folder: Path = tmp_path_factory.mktemp("damage")
    for number, name in enumerate(("x.safetensors", "x.pt")):
        file = folder / name
        if number:
            torch.save(torch.zeros(1, 77, 8), file)
        else:
            save_direction(direction(), file)
        content = bytearray(file.read_bytes())
        for place, mask in flips:
            content[place % len(content)] ^= mask
        file.write_bytes(content[: len(content) - cut] if cut % 2 else content)
        try:
            found = load_original(file, file) if number else load_direction(file)
        except DirectionError:
            continue
        assert found.context.dim() == 2


def test_the_originals_pair_of_files_is_read(tmp_path):
    before, after = torch.randn(1, 77, 768), torch.randn(1, 77, 768)
    torch.save(before, tmp_path / "cat.pt")
    torch.save(after.half(), tmp_path / "dog.pt")
    made = load_original(tmp_path / "cat.pt", tmp_path / "dog.pt")
    assert torch.equal(made.context, (after.half().float() - before)[0])
    assert made.origin == Origin("cat", "dog")
    torch.save(torch.zeros(1, 77, 1024), tmp_path / "other.pt")
    with pytest.raises(DirectionError, match="different text encoders"):
        load_original(tmp_path / "cat.pt", tmp_path / "other.pt")


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pt_files_that_hold_anything_else_are_refused_and_run_nothing(tmp_path):
    good = tmp_path / "good.pt"
    torch.save(torch.zeros(1, 77, 8), good)
    touched = tmp_path / "touched"
    things: list[Any] = [
        {"a": torch.zeros(1, 77, 8)},
        [torch.zeros(1, 77, 8)],
        torch.zeros(77, 8),
        torch.zeros(2, 77, 8),
        torch.zeros(1, 77, 8, dtype=torch.int64),
        torch.zeros(1, 77, 1).expand(1, 77, 10**7),
        torch.zeros(1, 77, 8).to_sparse(),
        torch.full((1, 77, 8), math.nan),
        torch.nn.Parameter(torch.zeros(1, 77, 8)),
        Evil(touched),
        "text",
    ]
    for number, thing in enumerate(things):
        bad = tmp_path / f"bad{number}.pt"
        torch.save(thing, bad)
        with pytest.raises(DirectionError, match=r"\.$") as caught:
            load_original(good, bad)
        assert str(tmp_path) not in str(caught.value)
    old = tmp_path / "old.pt"
    torch.save(torch.zeros(1, 77, 8), old, _use_new_zipfile_serialization=False)
    with pytest.raises(DirectionError, match="expected"):
        load_original(good, old)
    assert not touched.exists()


def test_a_pt_file_that_would_unpack_to_any_size_is_refused(tmp_path):
    plain = io.BytesIO()
    torch.save(torch.zeros(1, 77, 800), plain)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(DirectionError, match="expected"):
        load_original(bomb, bomb)
