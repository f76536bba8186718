"""Class images are generated once, by the frozen model, and a stop at any moment costs none that is finished."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_methods.dreambooth.training import sampler as prior
from lib_methods.dreambooth.training.sampler import class_images, deal_sizes, generate
from lib_methods.errors import Cancelled, UserError
from standalone.dreambooth import EngineModel
from tests.dreambooth.models import load
from tests.dreambooth.output.test_lora_file import settings

SIDE = 32


def wanted(count: int = 5, **kwargs: Any) -> Any:
    return settings(class_images=count, class_steps=2, resolution=SIDE, **kwargs)


@pytest.fixture
def model(tmp_path: Path) -> EngineModel:
    return load(tmp_path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The seeds of every batch that is drawn."""
    seeds: list[list[int]] = []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seeds.append(list(kwargs["seeds"]))
        return generate(*args, **kwargs)

    monkeypatch.setattr(prior, "generate", watched)
    return seeds


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_they_are_what_the_model_draws_of_the_class(tmp_path: Path, model: EngineModel) -> None:
    paths = class_images(model, wanted(3), tmp_path / "class_images", batch=2)
    expected = generate(model, ["a dog"] * 3, size=(SIDE, SIDE), steps=2, cfg_scale=prior.CFG_SCALE, seeds=[0, 1, 2])
    for path, picture in zip(paths, expected, strict=True):
        assert path.suffix == ".png"
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(np.float32) / 127.5 - 1
        assert np.abs(pixels - picture.permute(1, 2, 0).numpy()).max() < 0.02
    assert len(set(contents(paths))) == 3
    told = json.loads((paths[0].parent / prior.MANIFEST).read_text(encoding="utf-8"))
    assert (told["prompt"], told["sha256"], told["steps"]) == ("a dog", model.sha256, 2)


def test_they_are_drawn_once_and_more_are_added(tmp_path: Path, model: EngineModel, drawn: list[list[int]]) -> None:
    first = class_images(model, wanted(3), tmp_path / "c")
    before = contents(first)
    assert drawn == [[0, 1, 2]]
    assert class_images(model, wanted(3), tmp_path / "c") == first
    assert class_images(model, wanted(2), tmp_path / "c") == first[:2]
    assert drawn == [[0, 1, 2]]
    more = class_images(model, wanted(5), tmp_path / "c")
    assert drawn == [[0, 1, 2], [0, 1, 2, 3], [4]]
    assert contents(more[:3]) == before


def test_a_stop_keeps_what_was_drawn(tmp_path: Path, model: EngineModel, drawn: list[list[int]]) -> None:
    seen: list[tuple[int, int]] = []
    with pytest.raises(Cancelled):
        class_images(
            model,
            wanted(5),
            tmp_path / "c",
            lambda done, total: seen.append((done, total)),
            lambda: len(drawn) == 2,
            batch=2,
        )
    assert drawn == [[0, 1], [2, 3]] and seen == [(0, 5), (2, 5), (4, 5)]
    paths = class_images(model, wanted(5), tmp_path / "c", batch=2)
    assert drawn[2:] == [[4]]
    whole = class_images(model, wanted(5), tmp_path / "other", batch=2)
    assert contents(paths) == contents(whole)


@pytest.mark.parametrize("harm", ["missing", "empty", "torn", "other size", "no picture", "jpeg"])
def test_a_broken_picture_is_drawn_again(tmp_path: Path, model: EngineModel, drawn: list[list[int]], harm: str) -> None:
    paths = class_images(model, wanted(3), tmp_path / "c")
    before = contents(paths)
    if harm == "missing":
        paths[1].unlink()
    elif harm == "other size":
        Image.new("RGB", (8, 8)).save(paths[1])
    elif harm == "jpeg":
        Image.new("RGB", (SIDE, SIDE)).save(paths[1], "JPEG")
    else:
        data = {"empty": b"", "torn": before[1][: len(before[1]) // 2], "no picture": b"hello" * 100}
        paths[1].write_bytes(data[harm])
    again = class_images(model, wanted(3), tmp_path / "c")
    assert drawn[1:] == [[0, 1, 2]], "alone it might differ in its last bit"
    assert contents(again) == before


@pytest.mark.parametrize(
    "change", [{"class_noun": "cat"}, {"class_prompt": "a photo of a dog"}, {"resolution": 64}, {"class_steps": 3}]
)
def test_other_words_or_settings_give_other_pictures(tmp_path: Path, model: EngineModel, change: Any) -> None:
    one = class_images(model, wanted(1), tmp_path / "c")
    given = {"class_images": 1, "class_steps": 2, "resolution": SIDE, **change}
    other = class_images(model, settings(**given), tmp_path / "c")
    assert one[0].parent != other[0].parent
    assert contents(one) != contents(other)


def test_what_does_not_matter_shares_the_pictures(tmp_path: Path, model: EngineModel, drawn: list[list[int]]) -> None:
    one = class_images(model, wanted(2), tmp_path / "c")
    model.name = "renamed"
    assert class_images(model, wanted(2, seed=9, identifier="sks", kind="full"), tmp_path / "c") == one
    model.sha256 = "0" * 64
    assert class_images(model, wanted(2), tmp_path / "c") != one
    assert len(drawn) == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_does_not_suffice_makes_the_batches_smaller(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried: list[int] = []

    def small(*args: Any, **kwargs: Any) -> torch.Tensor:
        tried.append(len(kwargs["seeds"]))
        if len(kwargs["seeds"]) > 1:
            raise error
        return generate(*args, **kwargs)

    monkeypatch.setattr(prior, "generate", small)
    assert len(class_images(model, wanted(2), tmp_path / "c", batch=4)) == 2
    assert tried == [2, 1, 1]

    def none(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(prior, "generate", none)
    with pytest.raises(UserError, match="Out of memory"):
        class_images(model, wanted(2), tmp_path / "d")


def test_other_errors_are_not_taken_for_a_want_of_memory(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        tried.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(prior, "generate", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        class_images(model, wanted(2), tmp_path / "c")
    assert tried == [1]


WIDE, TALL = (64, 32), (32, 48)
MIXED = [WIDE, (SIDE, SIDE), WIDE, TALL, WIDE]


def test_pictures_have_the_sizes_that_they_are_wanted_in(tmp_path: Path, model: EngineModel) -> None:
    paths = class_images(model, wanted(), tmp_path / "c", sizes=MIXED, batch=2)
    sizes = []
    for path in paths:
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes == MIXED
    assert len(set(paths)) == 5 and len({path.parent for path in paths}) == 3 and len(set(contents(paths))) == 5
    expected = generate(model, ["a dog"], size=WIDE, steps=2, cfg_scale=prior.CFG_SCALE, seeds=[2])[0]
    with Image.open(paths[4]) as opened:  # the third of its size
        pixels = np.asarray(opened.convert("RGB")).astype(np.float32) / 127.5 - 1
    assert np.abs(pixels - expected.permute(1, 2, 0).numpy()).max() < 0.02


def test_a_batch_has_one_size_and_a_stop_costs_nothing_of_any(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[Any, list[int]]] = []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        batches.append((kwargs["size"], list(kwargs["seeds"])))
        return generate(*args, **kwargs)

    monkeypatch.setattr(prior, "generate", watched)
    seen: list[tuple[int, int]] = []
    with pytest.raises(Cancelled):
        class_images(
            model,
            wanted(),
            tmp_path / "c",
            lambda done, total: seen.append((done, total)),
            lambda: len(batches) == 2,
            sizes=MIXED,
            batch=2,
        )
    assert batches == [(WIDE, [0, 1]), (WIDE, [2])] and seen == [(0, 5), (2, 5), (3, 5)]
    paths = class_images(model, wanted(), tmp_path / "c", sizes=MIXED, batch=2)
    assert batches[2:] == [((SIDE, SIDE), [0]), (TALL, [0])]
    assert class_images(model, wanted(), tmp_path / "c", sizes=MIXED) == paths and len(batches) == 4
    paths[2].unlink()
    class_images(model, wanted(), tmp_path / "c", sizes=MIXED)
    assert batches[4:] == [(WIDE, [0, 1, 2])]


def test_trainings_share_pictures_size_by_size(tmp_path: Path, model: EngineModel, drawn: list[list[int]]) -> None:
    square = class_images(model, wanted(2), tmp_path / "c")
    mixed = class_images(model, wanted(), tmp_path / "c", sizes=[(SIDE, SIDE), WIDE, (SIDE, SIDE)])
    assert [mixed[0], mixed[2]] == square and drawn == [[0, 1], [0]]
    more = class_images(model, wanted(), tmp_path / "c", sizes=[WIDE, WIDE])
    assert more[0] == mixed[1] and drawn[2:] == [[0, 1]]


def test_squares_lie_where_they_did_before_there_were_other_sizes(tmp_path: Path, model: EngineModel) -> None:
    told = {
        "version": 1,
        "sha256": model.sha256,
        "parameterization": "eps",
        "prompt": "a dog",
        "steps": 2,
        "cfg_scale": 7.0,
        "side": SIDE,
        "solver": "dpm++2m",
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    assert class_images(model, wanted(1), tmp_path / "c", sizes=[(SIDE, SIDE)])[0].parent.name == key


def test_the_class_is_embedded_once(tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    embed = model.embed

    def watched(texts: Any) -> Any:
        read.append(list(texts))
        return embed(texts)

    monkeypatch.setattr(model, "embed", watched)
    class_images(model, wanted(5), tmp_path / "c", batch=2)
    assert read == [["a dog", ""]]
    class_images(model, wanted(5), tmp_path / "c", batch=2)
    assert len(read) == 1


def test_a_full_disk_is_said_and_leaves_no_half_picture(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    sync = os.fsync

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"class-\d+\.png cannot be written: No space left"):
        class_images(model, wanted(5), tmp_path / "c", batch=2)
    monkeypatch.undo()
    left = sorted((tmp_path / "c").rglob("*.*"))
    assert left and all(path.suffix in (".png", ".json") for path in left)
    for path in left:
        if path.suffix == ".png":
            with Image.open(path) as opened:
                opened.load()
    assert len(class_images(model, wanted(5), tmp_path / "c", batch=2)) == 5


def test_a_model_that_draws_no_numbers_writes_nothing(tmp_path: Path, model: EngineModel) -> None:
    with torch.no_grad():
        model.unet.get_parameter("conv_out.weight").fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        class_images(model, wanted(2), tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.png"))


@pytest.mark.parametrize(("photos", "count"), [([(64, 64)], 7), ([(64, 64)] * 3 + [(80, 48)], 8), ([(64, 64)], 0)])
def test_class_images_are_dealt_in_proportion(photos: list[tuple[int, int]], count: int) -> None:
    dealt = deal_sizes(photos, count)
    assert len(dealt) == count
    for size in set(photos) if count else ():
        assert abs(dealt.count(size) - count * photos.count(size) / len(photos)) <= 1


def test_every_size_gets_class_images_even_if_there_are_fewer() -> None:
    sizes = [(64, 64), (80, 48), (48, 80)]
    assert sorted(deal_sizes(sizes, 1)) == sorted(sizes)
