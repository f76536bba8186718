"""What `test_processes` runs twice at a time.

`python -m tests.dreambooth.two_processes FOLDER BASE PORT ...`
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.loss import noised, training_loss
from lib_methods.dreambooth.training.optimizers import Group, Stepper, build_optimizer
from lib_methods.dreambooth.training.processes import (
    Processes,
    Sharding,
    can_shard,
    gathered,
    joined,
    local,
    shard,
    sharded_like,
    start_processes,
    whole,
)
from lib_methods.dreambooth.training.weights import Ema
from lib_methods.errors import Cancelled
from tests.dreambooth.runs import settings_for, stop_after, train

CPU = torch.device("cpu")
STEPS = 4
PORTS: list[str] = []
PHOTOS = 4  # in the whole batch, and as many class pictures


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1)).to(dtype)


def loss_of(model: Callable[[Tensor], Tensor], step: int, rows: list[int]) -> Tensor:
    """The loss of some of the photos and of as many class pictures of the whole batch, drawn alike everywhere."""
    generator = torch.Generator().manual_seed(step)
    latents, noise = (torch.randn(2 * PHOTOS, 4, 6, 6, generator=generator) for _ in range(2))
    timesteps = torch.randint(0, 1000, (2 * PHOTOS,), generator=generator)
    alphas = torch.linspace(0.999, 0.005, 1000)
    mine = [*rows, *(PHOTOS + row for row in rows)]
    is_prior = torch.tensor([False] * len(rows) + [True] * len(rows))
    latents, noise, timesteps = latents[mine], noise[mine], timesteps[mine]
    seen = noised(latents, noise, timesteps, alphas)
    return training_loss(
        model(seen),
        noise,
        latents,
        timesteps,
        alphas,
        "v",
        is_prior=is_prior,
        prior_weight=0.5,
        snr_gamma=5.0,
    )[0]


def small_training(
    processes: Processes, name: str, dtype: torch.dtype, *, scaled: bool = False, overflow_on: int | None = None
) -> list[float]:
    """A few steps; the weights after them."""
    model = small_model(dtype)
    parameters = list(model.parameters())
    stepper: Stepper = build_optimizer([Group(parameters, 1e-2)], name, clip=0.05, scaled=scaled, seed=3)
    for step in range(STEPS):
        loss = loss_of(lambda seen: model(seen.to(dtype)), step, list(range(PHOTOS))[processes.rank :: processes.count])
        stepper.backward(loss * (1e36 if step == 1 and overflow_on == processes.rank else 1.0))
        processes.average_gradients(parameters)
        stepper.step()
        stepper.zero()
    return torch.cat([p.detach().float().flatten() for p in parameters]).tolist()


@dataclass(frozen=True)
class Scaled:
    """A model and a weight outside of it."""

    model: nn.Module
    factor: Tensor

    def __call__(self, seen: Tensor) -> Tensor:
        out: Tensor = self.model(seen) * self.factor
        return out


def sharded_training(processes: Processes, *, scaled: bool, overflow: bool) -> dict[str, Any]:
    """As `small_training` with AdamW, the model sharded and a weight beside it that is not; with an average, and with
    optimizer and average taken to a fresh copy after half of the steps."""
    sharding = Sharding("FSDP", frees=True)
    found: dict[str, Any] = {}
    states: tuple[dict[str, Tensor], ...] = ()
    for first, last in ((0, STEPS // 2), (STEPS // 2, STEPS)):
        model, beside = small_model(), nn.Parameter(torch.ones(4, 1, 1))
        shard(model, sharding, CPU)
        parameters = [*model.parameters(), beside]
        groups = [Group(parameters[:-1], 1e-2), Group([beside], 1e-2)]
        stepper, ema = build_optimizer(groups, "adamw", clip=0.05, scaled=scaled), Ema(parameters, 0.5)
        if states:
            weights, optimizer, average = states
            for name, parameter in zip(sorted(weights), parameters):
                local(parameter.detach()).copy_(local(sharded_like(parameter, weights[name])))
            stepper.load_state_dict(optimizer)
            ema.load_state_dict(average)
        scaled_model = Scaled(model, beside)
        for step in range(first, last):
            loss = loss_of(scaled_model, step, list(range(PHOTOS))[processes.rank :: processes.count])
            stepper.backward(loss * (1e36 if overflow and step == 1 and processes.rank == 1 else 1.0))
            processes.average_gradients(parameters)
            stepper.step()
            stepper.zero()
            ema.update()
        named = {str(number): gathered(parameter) for number, parameter in enumerate(parameters)}
        states = named, stepper.state_dict(), ema.state_dict()
        found["kept"] = [sum(value.numel() for value in state.values() if value.ndim) for state in states]
        from_main = [states]
        torch.distributed.broadcast_object_list(from_main)  # as the file on the disk is for all
        (states,) = from_main
    found["parts"] = [list(local(parameter).shape) for parameter in parameters]
    averages = map(joined, ema.averages, parameters)
    found["weights"], found["average"] = (
        torch.cat([whole(value.detach()).flatten() for value in values]).tolist() for values in (parameters, averages)
    )
    return found


def plainly(*, scaled: bool = False) -> dict[str, Any]:
    """The same in one process that has the whole batch."""
    model, beside = small_model(), nn.Parameter(torch.ones(4, 1, 1))
    parameters = [*model.parameters(), beside]
    groups = [Group(parameters[:-1], 1e-2), Group([beside], 1e-2)]
    stepper, ema = build_optimizer(groups, "adamw", clip=0.05, scaled=scaled), Ema(parameters, 0.5)
    for step in range(STEPS):
        stepper.backward(loss_of(Scaled(model, beside), step, list(range(PHOTOS))))
        stepper.step()
        stepper.zero()
        ema.update()
    weights = torch.cat([p.detach().flatten() for p in parameters]).tolist()
    return {"weights": weights, "average": torch.cat([a.flatten() for a in ema.averages]).tolist()}


def sharded(folder: Path, base: Path, found: dict[str, Any]) -> None:
    """Trainings as a launcher's configuration for FSDP asks for them, stopped and resumed."""
    with processes_here() as processes:
        found["notes"] = processes.notes
        found["sharded"] = sharded_training(processes, scaled=False, overflow=False)
        found["sharded overflow"] = sharded_training(processes, scaled=True, overflow=True)
    for kind, resume in (("full", False), ("full", True), ("LoRA", False)):
        settings = sharded_settings(folder / kind, base, kind)
        stops = kind == "full" and not resume
        meet_again()
        try:
            cancelled = stop_after(1, settings) if stops else lambda: False
            train(settings, resume=resume, cancelled=cancelled, find_judge=first_is_best)
        except Cancelled:
            found["stopped"] = stops


@contextmanager
def processes_here() -> Iterator[Processes]:
    processes = start_processes(CPU)
    try:
        yield processes
    finally:
        processes.close()


def meet_again() -> None:
    """The next processes meet at the next port, as the launcher's own store takes them once only."""
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ["MASTER_PORT"] = PORTS.pop()


class FirstIsBest:
    """A judge to whom each look is worse than the one before."""

    templates = ("a {subject}",)

    def __init__(self) -> None:
        self.looks = 0

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> tuple[float, float]:
        self.looks += 1
        return 1 / self.looks, 1.0


def first_is_best(photos: object, settings: object, device: object) -> FirstIsBest:
    return FirstIsBest()


def sharded_settings(folder: Path, base: Path, kind: str, batch_size: int = 1) -> TrainingSettings:
    return settings_for(
        folder,
        base,
        kind=kind,
        prior="images" if kind == "full" else "model",
        batch_size=batch_size,
        optimizer="adamw",
        train_text=kind == "full",
        ema=0.5,
        select_best=kind == "LoRA",
        steps=2,
        sample_every=1,
        save_every=1,
    )


def whole_copies(folder: Path, base: Path, found: dict[str, Any]) -> None:
    """Steps of a small model, and a training, each process with all weights."""
    with processes_here() as processes:
        found |= {
            "rank": processes.rank,
            "count": processes.count,
            "is_main": processes.is_main,
            "mean": processes.mean(float(processes.rank)),
            "any": [processes.any(False), processes.any(processes.rank == 1), processes.any(True)],
            "adamw": small_training(processes, "adamw", torch.float32),
            "adafactor": small_training(processes, "adafactor", torch.bfloat16),
            "overflow": small_training(processes, "adamw", torch.float32, scaled=True, overflow_on=1),
        }
    said: list[str] = []
    meet_again()
    train(settings_for(folder / "whole", base, prior="images", batch_size=1, steps=2), say=said.append)
    found["said"] = len(said)


if __name__ == "__main__":
    where, checkpoint, *PORTS = sys.argv[1:]
    result: dict[str, Any] = {}
    if can_shard():
        sharded(Path(where), Path(checkpoint), result)
        meet_again()
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    whole_copies(Path(where), Path(checkpoint), result)
    (Path(where) / f"found{result['rank']}.json").write_text(json.dumps(result), encoding="utf-8")
