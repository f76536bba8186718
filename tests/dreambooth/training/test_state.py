"""The state on the disk, and the averaged weights in it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from lib_methods.dreambooth.training import state as record
from lib_methods.dreambooth.training import state as states
from lib_methods.dreambooth.training.state import State, load_state, pack, save_state, unpack
from lib_methods.dreambooth.training.weights import Ema
from lib_methods.errors import CheckpointError, UserError
from lib_methods.safetensors import read_tensors, write_tensors
from tests.dreambooth.models import load
from tests.dreambooth.training.test_trainer import trainer_of

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def tensors() -> dict[str, torch.Tensor]:
    return {f"t{n}": (torch.randn(3, n + 1) * 3).to(dtype) for n, dtype in enumerate(DTYPES)} | {
        "scalar": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12).reshape(3, 4).T,
    }


def a_state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    weights = {"a": torch.randn(4, generator=generator), "b": torch.randn(2, 2, generator=generator).half()}
    return State(step, "me", {"weights": weights, "order": {"epoch": step, "8x8": 3}, "rate": 0.1, "none": None})


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
nests = st.recursive(
    leaves | st.integers(0, 9).map(lambda n: torch.full((n,), n)),
    lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(nests)
def test_any_nest_comes_back(nest: Any) -> None:
    found: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(pack(nest, found, "x")))
    assert same(unpack(tree, found), nest)


def test_what_a_state_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_state(tmp_path, State(1, "me", {"a": {"b": {1, 2}}}))


def test_files_are_what_safetensors_reads(tmp_path: Path) -> None:
    given_ = tensors()
    write_tensors(tmp_path / "a.safetensors", given_, {"note": "ä"})
    theirs = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(theirs[name], given_[name]) for name in given_)
    ours, metadata = read_tensors(tmp_path / "a.safetensors")
    assert all(same(ours[name], given_[name].contiguous()) for name in given_)
    assert metadata == {"note": "ä"}


def test_tensors_may_be_made_when_their_turn_comes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": lambda: torch.arange(3), "y": torch.ones(2)})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")[0]["x"], torch.arange(3))


def test_a_state_comes_back(tmp_path: Path) -> None:
    assert load_state(tmp_path, "me") is None
    save_state(tmp_path, a_state(1))
    save_state(tmp_path, a_state(2))
    found = load_state(tmp_path, "me")
    assert found is not None
    assert found.step == 2 and same(found.parts, a_state(2).parts)
    assert sorted(file.name for file in tmp_path.iterdir()) == [states.STATE]


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, a_state(1))
    with pytest.raises(UserError, match="another run"):
        load_state(tmp_path, "someone else")


@pytest.mark.parametrize("cut", [0, 4, 20, 300, -1])
def test_a_damaged_state_is_a_sentence(tmp_path: Path, cut: int) -> None:
    save_state(tmp_path, a_state(1))
    file = tmp_path / states.STATE
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path, "me")


class FullDisk:
    """A file that takes so many writes, and then the disk is full."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.writes = file, writes

    def write(self, data: Any) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    save_state(tmp_path, a_state(1))
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r", **more: FullDisk(opened(self, mode, **more), writes))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            save_state(tmp_path, a_state(2))
    found = load_state(tmp_path, "me")
    assert found is not None and found.step == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [states.STATE]  # half a file is not left lying about


def test_a_stop_between_writing_and_replacing_leaves_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, a_state(1))

    def stop(*names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, a_state(2))
    found = load_state(tmp_path, "me")
    assert found is not None and same(found.parts, a_state(1).parts)


def test_the_record_comes_back_and_a_damaged_one_is_a_sentence(tmp_path: Path) -> None:
    assert record.read_record(tmp_path) is None
    record.write_record(tmp_path, {"asked": {"steps": 3}, "name": "ä"})
    assert record.read_record(tmp_path) == {"asked": {"steps": 3}, "name": "ä"}
    for damage in ("[1]", "{", ""):
        (tmp_path / record.RECORD).write_text(damage, encoding="utf-8")
        with pytest.raises(UserError, match="damaged"):
            record.read_record(tmp_path)


def test_a_digest_does_not_depend_on_the_order() -> None:
    assert record.digest({"a": 1, "b": 2}) == record.digest({"b": 2, "a": 1}) != record.digest({"a": 1, "b": 3})


def walk(parameter: nn.Parameter, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    parameter.data.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def test_the_average_is_the_formulas() -> None:
    weights = nn.Parameter(torch.ones(3, dtype=torch.float64))
    weights.data = weights.data.float()
    ema, wanted = Ema([weights], 0.9), weights.detach().double().clone()
    for step in range(1, 200):
        walk(weights, step)
        ema.update()
        kept = min(0.9, (1 + step) / (10 + step))
        wanted = kept * wanted + (1 - kept) * weights.detach().double()
    torch.testing.assert_close(ema.averages[0].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lent_weights_are_given_back_bit_by_bit_even_after_an_error(dtype: torch.dtype) -> None:
    weights = nn.Parameter(torch.randn(50).to(dtype))
    ema = Ema([weights], 0.5)
    walk(weights, 1)
    ema.update()
    own = weights.detach().clone()
    with ema.applied():
        assert torch.equal(weights, ema.averages[0].to(dtype)) and not torch.equal(weights, own)
    assert torch.equal(weights, own)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert torch.equal(weights, own)


def test_a_saved_average_goes_on_exactly() -> None:
    runs = []
    for pause in (False, True):
        weights = nn.Parameter(torch.zeros(4))
        ema = Ema([weights], 0.99)
        for step in range(10):
            if pause and step == 5:
                state = ema.state_dict()
                ema = Ema([weights], 0.99)
                ema.load_state_dict(state)
            walk(weights, step)
            ema.update()
        runs.append(ema.averages[0])
    assert torch.equal(runs[0], runs[1])


def test_averages_of_other_weights_are_refused() -> None:
    ema = Ema([nn.Parameter(torch.zeros(4))], 0.9)
    for other in ([nn.Parameter(torch.zeros(5))], [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]):
        with pytest.raises(UserError, match="other weights"):
            ema.load_state_dict(Ema(other, 0.9).state_dict())


def test_a_state_of_another_training_changes_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path), more={"identity": "one"})
    trainer.step()
    trainer.save()
    other = trainer_of(tmp_path, load(tmp_path), more={"identity": "other"})
    before = {name: value.clone() for name, value in other.trained.state_dict().items()}
    with pytest.raises(UserError, match="another run"):
        other.restore()
    assert all(torch.equal(value, before[name]) for name, value in other.trained.state_dict().items())
