"""Models small enough to know what they should give, and latents and levels to ask them about."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib_methods.pix2pix_zero.inversion import AncestralSettings, Trajectory, euler_step
from lib_methods.pix2pix_zero.noise import ancestral_levels


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latent_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or (2, 4, 12, 10), generator=gen(seed), dtype=dtype)


def levels(steps: int, low: float = 0.03, high: float = 14.6) -> Tensor:
    return torch.cat([torch.logspace(math.log10(high), math.log10(low), steps), torch.zeros(1)])


class Gaussian:
    """The exact denoiser of data ~ N(0, spread^2), whose ODE is x(sigma) = x0 * sqrt(1 + sigma^2 / spread^2)."""

    def __init__(self, spread: float = 0.8) -> None:
        self.spread = spread
        self.asked: list[float] = []

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.asked.append(sigma)
        return x * (self.spread**2 / (self.spread**2 + sigma**2))

    def solution(self, x0: Tensor, sigma: float) -> Tensor:
        return x0 * math.sqrt(1 + (sigma / self.spread) ** 2)


class Crooked:
    """A smooth model that mixes pixels and levels, so that no step is exact. Fails on demand."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.weight = torch.randn((4, 4, 3, 3), generator=gen(7), dtype=torch.float64).to(dtype) / 6
        self.calls = 0

    def noise(self, unit: Tensor, when: float) -> Tensor:
        mixed = torch.nn.functional.conv2d(unit, self.weight.to(unit.dtype), padding=1)
        return torch.tanh(mixed + 0.3 * when) + 0.4 * unit

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        unit = x / math.sqrt(1 + sigma**2)
        return x - sigma * self.noise(unit, math.atan(sigma))


def replay(found: Trajectory, model: Callable[[Tensor, float], Tensor]) -> Tensor:
    """The image once more from its noise: the quiet part of every step, and what was found to be missing."""
    x, sigmas = found.start, found.sigmas.tolist()
    eta = found.settings.eta if isinstance(found.settings, AncestralSettings) else 0.0
    for index, (sigma, target) in enumerate(zip(sigmas, sigmas[1:])):
        x = euler_step(x, model(x, sigma).to(x.dtype), sigma, ancestral_levels(sigma, target, eta)[0])
        x = x if found.offsets is None else x + found.offsets[index]
    return x


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
