"""Small trainings for the tests: a tiny checkpoint, a few photos, and runs that say what they said."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_methods.dreambooth.run import run_training
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training import samples as showing
from lib_methods.dreambooth.training.state import STATE
from lib_methods.jobs.log import LOG
from lib_methods.safetensors import read_tensors
from standalone.dreambooth import load_training_model
from tests.dreambooth.models import write

SIDE = 64  # pixels: latents of 8 x 8


def write_photos(folder: Path, count: int = 3, side: int = SIDE) -> Path:
    """Pictures that differ, each a square of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", (side, side), (40 * number, 120, 200 - 50 * number))
        picture.paste((250, 30 * number, 10), (8, 8 + 4 * number, 40, 50))
        picture.save(folder / f"photo{number}.png")
    return folder


def settings_for(tmp_path: Path, base: Path | None = None, **values: Any) -> TrainingSettings:
    """Four steps of a LoRA on three photos, unless told otherwise."""
    photos = tmp_path / "photos"
    if not photos.exists():
        write_photos(photos)
    wanted: dict[str, Any] = {
        "steps": 4,
        "rate": 1e-3,
        "identifier": "ohwx",
        "resolution": SIDE,
        "rank": 2,
        "class_images": 2,
        "class_steps": 2,
        "sample_every": 100,
        "saved_as": "fp32",
    }
    wanted.update(values)
    return TrainingSettings(
        photos=photos,
        base=base or write(tmp_path, levels=1),  # loading and training cost by the number of layers
        out=tmp_path / "out",
        name=wanted.pop("name", "dog1"),
        class_noun="dog",
        **wanted,
    )


def train(settings: TrainingSettings, **more: Any) -> Any:
    """run_training, on the CPU unless told otherwise, silently, with samples of a single step."""
    more.setdefault("say", lambda text: None)
    more.setdefault("device", torch.device("cpu"))
    load_model = more.pop("load_model", load_training_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showing, "STEPS", 1)
        return run_training(settings, load_model, **more)


def stop_after(steps: int, settings: TrainingSettings) -> Callable[[], bool]:
    """A `cancelled` that asks to stop once so many steps are in the log."""
    return lambda: len(events(settings, "step")) >= steps


def events(settings: TrainingSettings, name: str | None = None) -> list[dict[str, Any]]:
    """The lines of the training's log, all or those of one event."""
    log = settings.out / settings.name / LOG
    if not log.exists():
        return []
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # one that a kill has cut off
            lines.append(json.loads(line))
    return [line for line in lines if name in (None, line["event"])]


def state_tensors(settings: TrainingSettings) -> dict[str, Tensor]:
    """Everything in the saved state: weights, optimizer, averages."""
    return read_tensors(settings.out / settings.name / STATE)[0]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the same tensors, to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(settings: TrainingSettings, folder: Path) -> TrainingSettings:
    """The same training with its results elsewhere."""
    return replace(settings, out=folder)
