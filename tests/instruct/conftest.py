"""A tiny checkpoint, and a folder of rendered pairs, to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from standalone.instruct import dataset
from standalone.instruct.filters import AttributeFilter
from standalone.instruct.make import PairCounts, RenderedSource, make_pairs
from standalone.instruct.train import load_plain
from standalone.instruct.triplets import world_triplet
from tests.standalone import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD1-layout file with random weights."""
    return tiny.write_file(tiny.build("sd1"), tmp_path_factory.mktemp("plain") / "tiny.safetensors")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    """The loaded checkpoint. Nobody changes it."""
    return load_plain(checkpoint)[0]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with six rendered pairs."""
    folder = tmp_path / "pairs"
    dataset.open_folder(folder, {"source": "rendered"})
    plan = PairCounts(tries=1, keep=1, seed=3, shares=(0.1, 0.9))
    said: list[str] = []
    make_pairs(folder, lambda n: world_triplet(3, n), 6, RenderedSource(64), AttributeFilter(), plan, said.append)
    return folder


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
