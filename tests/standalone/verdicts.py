"""What loader, trainer and plan say to one base model: the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_methods.dreambooth.model.base import read_base
from lib_methods.errors import CheckpointError, UserError
from standalone.dreambooth import load_training_model
from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.model import StableDiffusionModel


def refusal(path: Path) -> str:
    """The one sentence that loader, trainer and plan all say to the file at `path`."""
    with pytest.raises(CheckpointError) as loader:
        load_checkpoint(path)
    with pytest.raises(UserError) as trainer:
        load_training_model(path)
    with pytest.raises(UserError) as plan:
        read_base(path)
    assert str(trainer.value) == str(plan.value) == f"The base model cannot be used: {loader.value}"
    assert str(path.parent) not in str(loader.value)
    return str(loader.value)


def accepted(path: Path) -> StableDiffusionModel:
    """The model, which loader, trainer and plan all take."""
    read_base(path)
    load_training_model(path)
    return load_checkpoint(path)
