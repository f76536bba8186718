"""What `test_distributed` runs twice at a time: `python -m tests.dreambooth.two_processes FOLDER BASE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.dreambooth.distributed import Processes, start_processes
from lib_methods.dreambooth.loss import noised, training_loss
from lib_methods.dreambooth.optimizers import Group, Stepper, build_optimizer
from tests.dreambooth.training import settings_for, train

CPU = torch.device("cpu")
STEPS = 4
PHOTOS = 4  # in the whole batch, and as many class pictures


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1)).to(dtype)


def loss_of(model: nn.Module, step: int, rows: list[int]) -> Tensor:
    """The loss of some of the photos and of as many class pictures of the whole batch, drawn alike everywhere."""
    generator = torch.Generator().manual_seed(step)
    latents, noise = (torch.randn(2 * PHOTOS, 4, 6, 6, generator=generator) for _ in range(2))
    timesteps = torch.randint(0, 1000, (2 * PHOTOS,), generator=generator)
    alphas = torch.linspace(0.999, 0.005, 1000)
    mine = [*rows, *(PHOTOS + row for row in rows)]
    is_prior = torch.tensor([False] * len(rows) + [True] * len(rows))
    latents, noise, timesteps = latents[mine], noise[mine], timesteps[mine]
    seen = noised(latents, noise, timesteps, alphas).to(next(model.parameters()).dtype)
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
    stepper: Stepper = build_optimizer([Group("unet", parameters, 1e-2)], name, clip=0.05, scaled=scaled, seed=3)
    for step in range(STEPS):
        loss = loss_of(model, step, processes.share(range(PHOTOS)))
        stepper.backward(loss * (1e36 if step == 1 and overflow_on == processes.rank else 1.0))
        processes.average_gradients(parameters)
        stepper.step()
        stepper.zero()
    return torch.cat([p.detach().float().flatten() for p in parameters]).tolist()


def main(folder: Path, base: Path) -> None:
    processes = start_processes(CPU)
    found: dict[str, Any] = {
        "rank": processes.rank,
        "count": processes.count,
        "is_main": processes.is_main,
        "share": processes.share(range(5)),
        "mean": processes.mean(float(processes.rank)),
        "any": [processes.any(False), processes.any(processes.rank == 1), processes.any(True)],
        "adamw": small_training(processes, "adamw", torch.float32),
        "adafactor": small_training(processes, "adafactor", torch.bfloat16),
        "overflow": small_training(processes, "adamw", torch.float32, scaled=True, overflow_on=1),
    }
    processes.close()
    said: list[str] = []
    settings = settings_for(folder, base, prior="images", batch_size=1)
    train(settings, say=said.append)
    found["said"] = len(said)
    (folder / f"found{found['rank']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
