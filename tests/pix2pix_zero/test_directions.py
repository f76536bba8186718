"""Directions: means, chunks, combinations, files; what is no direction is refused with a sentence."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lib_methods.pix2pix_zero.directions import (
    Direction,
    DirectionError,
    Origin,
    combine,
    fit_tokens,
    make_direction,
    mean_embedding,
)
from lib_methods.pix2pix_zero.library import load_direction, load_original, read_record, save_direction

ORIGIN = Origin("cat", "dog", 3, 4, 2, "some model")


@dataclass(frozen=True)
class Told:
    context: Tensor
    vector: Tensor | None = None


class Encoder:
    """Embeds a sentence by its letters, in as many chunks of 77 tokens as it has words; a batch as long as its
    longest sentence, as hosts do."""

    def __init__(self, dim: int = 8, vector: bool = False) -> None:
        self.dim, self.vector = dim, vector
        self.batches: list[int] = []

    def alone(self, sentence: str) -> Tensor:
        parts = []
        for word in sentence.split():
            generator = torch.Generator().manual_seed(sum(map(ord, word)))
            parts.append(torch.randn(77, self.dim, generator=generator))
        return torch.cat(parts)

    def __call__(self, sentences: list[str]) -> Tensor | Told:
        self.batches.append(len(sentences))
        rows = [self.alone(sentence) for sentence in sentences]
        longest = max(len(row) for row in rows)
        context = torch.stack([fit_tokens(row, longest) for row in rows])
        return Told(context, context.mean(1)) if self.vector else context


def direction(tokens: int = 77, dim: int = 8, seed: int = 0, vector: int = 0, origin: Origin = ORIGIN) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(vector, generator=generator) if vector else None
    return Direction(torch.randn(tokens, dim, generator=generator), origin, pooled)


SENTENCES = st.lists(st.lists(st.sampled_from(["cat", "sun", "red"]), min_size=1, max_size=4).map(" ".join), min_size=1)


@settings(max_examples=40, deadline=None)
@given(SENTENCES, st.integers(1, 7))
def test_the_mean_does_not_depend_on_how_the_sentences_are_batched(sentences, batch):
    encoder = Encoder(vector=True)
    mean, vector = mean_embedding(sentences, encoder, batch=batch)
    assert sum(encoder.batches) == len(sentences) and max(encoder.batches) <= batch
    longest = 77 * max(len(sentence.split()) for sentence in sentences)
    expected = torch.stack([fit_tokens(encoder.alone(sentence), longest) for sentence in sentences]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert vector is not None and vector.shape == (8,)


@given(st.integers(1, 4), st.integers(0, 5))
def test_a_longer_prompt_gets_the_last_chunk_again_beginning_to_beginning(chunks, more):
    context = torch.arange(77.0 * chunks * 2).view(-1, 2)
    longer = fit_tokens(context, 77 * (chunks + more))
    assert torch.equal(longer[: 77 * chunks], context)
    for chunk in range(chunks, chunks + more):
        assert torch.equal(longer[77 * chunk : 77 * (chunk + 1)], context[-77:])
    assert torch.equal(fit_tokens(longer, 77 * chunks), context)


def test_embeddings_of_another_length_than_clips_are_repeated_as_a_whole():
    assert fit_tokens(torch.arange(3.0)[:, None], 8).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_direction_is_the_difference_of_the_means():
    encoder, before, after = Encoder(vector=True), ["cat", "red cat"], ["dog", "a dog there", "dog sun"]
    made = make_direction("cat", "dog", before, after, encoder, clip_skip=2, model="m")
    assert len(made.context) == 3 * 77 and made.text_width == 8
    expected = mean_embedding(after, encoder)[0] - fit_tokens(mean_embedding(before, encoder)[0], 231)
    torch.testing.assert_close(made.context, expected)
    assert made.vector is not None
    assert made.origin == Origin("cat", "dog", 2, 3, 2, "m")


def test_what_makes_no_direction_is_refused_with_a_sentence():
    good: tuple[Any, ...] = (["cat"], ["dog"], Encoder())
    for source, target in (("cat", "Cat "), ("", "dog"), ("cat", "\x00")):
        with pytest.raises(ValueError, match=r"\.$"):
            make_direction(source, target, *good)
    with pytest.raises(DirectionError, match="at least one sentence"):
        make_direction("cat", "dog", [], ["dog"], Encoder())
    for wrong in (
        lambda texts: torch.zeros(77, 8),
        lambda texts: torch.zeros(len(texts) + 1, 77, 8),
        lambda texts: torch.zeros(1, 77, 8 + len(texts[0])),
        lambda texts: torch.full((1, 77, 8), math.nan),
    ):
        with pytest.raises(DirectionError, match="text encoder"):
            make_direction("cat", "horse", ["cat"], ["horse"], wrong)


def test_a_direction_must_be_a_table_of_numbers():
    for wrong in (torch.zeros(3), torch.zeros(0, 8), torch.full((2, 2), math.inf)):
        with pytest.raises(DirectionError, match=r"\.$"):
            Direction(wrong, ORIGIN)
    with pytest.raises(DirectionError, match="pooled"):
        Direction(torch.zeros(2, 2), ORIGIN, torch.zeros(1, 2))


def test_reversing_twice_and_scaling_by_parts_come_back():
    one = direction(vector=5)
    back = one.reversed()
    assert torch.equal(back.context, -one.context) and back.origin.source == "dog" and back.origin.source_count == 4
    assert torch.equal(back.reversed().context, one.context) and back.reversed().origin == one.origin
    torch.testing.assert_close(combine([(combine([(one, 0.25)]), 4)]).context, one.context)
    scaled = combine([(one, -2)]).vector
    assert one.vector is not None and scaled is not None and torch.equal(scaled, one.vector * -2)


def test_combining_adds_with_weights_whatever_the_lengths():
    one, two = direction(77, seed=1, vector=5), direction(154, seed=2, origin=Origin("day", "night", 1, 1, 2))
    both = combine([(one, 0.5), (two, -2)])
    torch.testing.assert_close(both.context, fit_tokens(one.context, 154) * 0.5 - two.context * 2)
    assert both.vector is not None and one.vector is not None and torch.equal(both.vector, one.vector * 0.5)
    assert both.origin == Origin("cat + day", "dog + night", 4, 5, 2, "")
    assert len(combine([(direction(origin=Origin("x" * 200 + str(i), "y")), 1) for i in range(4)]).origin.source) <= 300


def test_directions_that_do_not_fit_each_other_or_the_model_are_refused():
    with pytest.raises(DirectionError, match="different models"):
        combine([(direction(dim=8), 1), (direction(dim=9), 1)])
    with pytest.raises(DirectionError, match="different models"):
        combine([(direction(vector=5), 1), (direction(vector=6), 1)])
    with pytest.raises(DirectionError, match="clip skips"):
        combine([(direction(), 1), (direction(origin=Origin("a", "b")), 1)])
    with pytest.raises(DirectionError, match="at least one"):
        combine([])
    for weight in (math.nan, math.inf, True, "1"):
        with pytest.raises(DirectionError, match="weight"):
            combine([(direction(), weight)])  # type: ignore[list-item]
    direction().check_width(8)
    with pytest.raises(DirectionError, match="text width of 8, this one has 768"):
        direction().check_width(768)
    with pytest.raises(DirectionError, match="pooled"):
        direction(vector=5).check_width(8, 6)


def test_a_direction_made_in_inference_mode_serves_gradients():
    with torch.inference_mode():
        one = combine([(make_direction("cat", "dog", ["cat"], ["dog"], Encoder()), 2.0)])
    assert not one.context.is_inference()


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
