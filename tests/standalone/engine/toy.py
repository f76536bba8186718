"""A made-up model that samplers run in no time, and diffusers' schedulers run on the same one."""

from __future__ import annotations

from typing import Any

import torch

from lib_methods.checkpoints.schedule import NoiseSchedule
from standalone.engine.denoiser import TimestepDenoiser
from standalone.engine.model import alpha_schedule

ABAR = alpha_schedule(NoiseSchedule())
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SHAPE = (2, 4, 6, 5)


class Toy:
    """A smooth made-up model that predicts eps (or v) from x and t."""

    def __init__(self, parameterization: str = "eps") -> None:
        self.alphas_cumprod = ABAR
        self.parameterization = parameterization
        self.calls: list[float] = []

    def eps(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        abar = ABAR[t.long()].reshape(-1, 1, 1, 1)
        return 0.8 * (1 - abar).sqrt() * x + 0.1 * torch.sin(3 * x + t.reshape(-1, 1, 1, 1) / 300)

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        self.calls.append(float(t.flatten()[0]))
        t = t.expand(x.shape[0])
        eps = self.eps(x, t)
        if self.parameterization == "eps":
            return eps
        abar = ABAR[t.long()].reshape(-1, 1, 1, 1)
        x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
        return abar.sqrt() * eps - (1 - abar).sqrt() * x0


class Guided:
    """Stands for the CFG denoiser around the inner model, without guidance."""

    def __init__(self, toy: Toy) -> None:
        self.inner_model = TimestepDenoiser(toy)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inner_model(x, t)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class Draws:
    """Noise for a sampler: the draws of one generator, as diffusers makes them."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(9)

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
        return torch.randn(SHAPE, generator=self.generator)


def by_diffusers(scheduler: Any, toy: Toy, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Runs a diffusers scheduler from unit noise `x` over its timesteps."""
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t)
        x = scheduler.step(toy.apply_model(inputs, t.reshape(1)), t, x, return_dict=False, **kwargs)[0]
    return x


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1), (
        (found - expected).abs().max()
    )
