"""The plan before the training: made in the host's process from the base model's header, without loading anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from lib_methods.dreambooth.model.base import BaseModel, read_base
from lib_methods.dreambooth.model.memory import GIB
from lib_methods.dreambooth.model.model import CPU, device_words
from lib_methods.dreambooth.settings import TrainingSettings, from_json
from lib_methods.dreambooth.training.duration import (
    count_work,
    forward_seconds,
    known_speed,
    plan_fields,
    rows_of,
    step_passes,
    training_seconds,
)
from lib_methods.dreambooth.training.plan import PLAN_FIELDS, TrainingPlan, device_memory, plan_training, resolved
from lib_methods.dreambooth.training.state import RECORD, read_record
from lib_methods.errors import UserError
from lib_methods.jobs.files import JobFiles, all_records
from lib_methods.jobs.log import LogReader, number

_GUESSED = "Whether this SD 2 model is for 768 or 512 pixels is known when it is loaded; this plan assumes {side}."


class Machine(Protocol):
    """What the host knows about the device that a training gets: `lib_methods.hosts.training`."""

    def device(self) -> torch.device:
        """The device."""

    def memory(self, device: torch.device, occupied: bool) -> int | None:
        """Bytes that a training will find free on it, once the host's model has left. None where nobody knows.

        occupied: a training runs, which will have ended.
        """

    def may_compute(self, device: torch.device) -> bool:
        """Whether the device has nothing to do, so that something may be measured on it."""


class OwnMachine:
    """Without a host: the GPU if there is one, as the trainer itself chooses."""

    def device(self) -> torch.device:
        return torch.device("cuda") if torch.cuda.is_available() else CPU

    def memory(self, device: torch.device, occupied: bool) -> int | None:
        return device_memory(device)

    def may_compute(self, device: torch.device) -> bool:
        return True


def preview(
    settings: TrainingSettings,
    photos: int | Sequence[int],
    machine: Machine,
    root: Path,
    running: bool = False,
    told: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan of a training, in the fields that its own log will tell, and "estimated": its seconds were not timed.

    photos: how many there are, of each subject. told: what is known of them, for the notes. root: the folder of the
    trainings, which is only read. running: one runs now. Raises UserError with the sentence why it cannot be
    trained: the base model, or too little memory.
    """
    base = read_base(settings.base)
    sizes, device = base.sizes, machine.device()
    chosen = resolved(settings, photos=photos, resolution=sizes.resolution, unet_parameters=sizes.unet)
    memory = int(settings.memory * GIB) or machine.memory(device, running)
    plan = plan_training(chosen, sizes, device, memory)
    words = device_words(device)
    forward = None
    pace = seconds_per_step(root, base, chosen, plan, words)
    if pace is not None:
        forward = pace / step_passes(chosen, plan)
    elif speed := known_speed(device, plan.precision, machine.may_compute(device) and not running):
        side = chosen.resolution // base.sizes.pixels_per_latent
        forward = forward_seconds(count_work(base.unet_shapes), rows_of(chosen, plan), (side, side), device, speed)
    seconds = None if forward is None else training_seconds(chosen, plan, forward)
    plan = replace(plan, notes=(*told, *plan.notes))
    notes = [_GUESSED.format(side=chosen.resolution)] if base.guessed and not settings.resolution else []
    return {**plan_fields(chosen, plan, base, words, seconds, notes), "estimated": True}


_MOST_LOOKED_AT = 20
_FEWEST_STEPS = 5  # the first ones are slower
_SETTINGS = ("kind", "rank", "convolutions", "train_text", "prior", "resolution")


def seconds_per_step(
    root: Path, base: BaseModel, settings: TrainingSettings, plan: TrainingPlan, device: str
) -> float | None:
    """That of the newest training in the folder `root` that did the same work: on this device, with a base model of
    the same sizes, these settings and this plan. None where there is none."""
    for record in all_records(root)[:_MOST_LOOKED_AT]:
        files = JobFiles(root, record.name)
        try:
            marks = [(file.stat().st_mtime_ns, file.stat().st_size) for file in (files.training / RECORD, files.log)]
        except OSError:
            continue
        found = _facts(files, tuple(marks))
        if found is None or found[1:] != (device, base.sizes, _of(settings, _SETTINGS), tuple(plan.fields.values())):
            continue
        return float(found[0])
    return None


@lru_cache(maxsize=_MOST_LOOKED_AT)
def _facts(files: JobFiles, marks: object) -> tuple[Any, ...] | None:
    """Seconds a step, and what they depend on; None where the training did not come far or cannot be read."""
    progress = LogReader(files.log).read()
    pace = number(progress.of("step").get("seconds_per_step"))
    if not pace or progress.step < _FEWEST_STEPS:
        return None
    try:
        record = read_record(files.training) or {}
        settings = from_json(record["resolved"])
        plan = {name: record["plan"][name] for name in PLAN_FIELDS}
        sizes = read_base(settings.base).sizes
    except (UserError, KeyError, TypeError, ValueError, OSError):
        return None
    return pace, progress.of("plan").get("device"), sizes, _of(settings, _SETTINGS), tuple(plan.values())


def _of(holder: object, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(holder, name) for name in names)
