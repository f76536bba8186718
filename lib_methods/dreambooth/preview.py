"""The plan before the training: made in the host's process from the base model's header, without loading anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from .choose import resolved
from .forecast import plan_fields, rows_of, step_passes, training_seconds
from .header_sizes import BaseModel, read_base
from .measured import seconds_per_step
from .memory import Plan, device_memory, plan_training
from .places import CPU, device_words
from .settings import TrainingSettings
from .sizes import GIB
from .speed import forward_seconds, known_speed

_GUESSED = "Whether this SD 2 model draws 768 or 512 pixels is seen when it is loaded; this counts with {side}."


class Machine(Protocol):
    """What the host knows about the device that a training gets: `lib_methods.hosts.training_device`."""

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
    trainings, which is only read. running: one runs now. Raises DreamBoothError with the sentence why it cannot be
    trained: the base model, or too little memory.
    """
    base = read_base(settings.base)
    sizes, device = base.sizes, machine.device()
    chosen = resolved(settings, photos=photos, resolution=sizes.resolution, unet_parameters=sizes.unet)
    memory = int(settings.memory * GIB) or machine.memory(device, running)
    plan = plan_training(chosen, sizes, device, memory)
    words = device_words(device)
    forward = _measured(root, base, chosen, plan, words)
    if forward is None:
        forward = _counted(base, chosen, plan, device, machine.may_compute(device) and not running)
    seconds = None if forward is None else training_seconds(chosen, plan, forward)
    plan = replace(plan, notes=(*told, *plan.notes))
    notes = [_GUESSED.format(side=chosen.resolution)] if base.guessed and not settings.resolution else []
    return {**plan_fields(chosen, plan, base, words, seconds, notes), "estimated": True}


def _measured(root: Path, base: BaseModel, settings: TrainingSettings, plan: Plan, device: str) -> float | None:
    """Seconds of a forward pass, from an earlier training like this one."""
    pace = seconds_per_step(root, base, settings, plan, device)
    return None if pace is None else pace / step_passes(settings, plan)


def _counted(
    base: BaseModel, settings: TrainingSettings, plan: Plan, device: torch.device, may_probe: bool
) -> float | None:
    """The same from a count of its operations."""
    speed = known_speed(device, plan.precision, may_probe)
    if speed is None:
        return None
    side = settings.resolution // base.sizes.pixels_per_latent
    return forward_seconds(base.work, rows_of(settings, plan), (side, side), device, speed)
