"""The sigma schedules that can be chosen beside the sampler ("Schedule type").

All formulas return n + 1 numbers (kl_optimal too) from the largest noise to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from standalone.engine import names

# Sabour et al. 2024, "Align Your Steps": ten optimised steps for SD1.5 and for SDXL
_ALIGNED_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_ALIGNED_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def _with_zero(sigmas: Any, device: Any) -> torch.Tensor:
    return torch.cat([torch.as_tensor(sigmas, dtype=torch.float32).cpu(), torch.zeros(1)]).to(device)


def uniform(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu") -> torch.Tensor:
    """Evenly spaced timesteps."""
    return inner_model.get_sigmas(n).to(device)


def karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Any = "cpu") -> torch.Tensor:
    """Karras et al. 2022, equation 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _with_zero((high + torch.linspace(0, 1, n) * (low - high)) ** rho, device)


def exponential(n: int, sigma_min: float, sigma_max: float, device: Any = "cpu") -> torch.Tensor:
    """Evenly spaced in log sigma."""
    return _with_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), n).exp(), device)


def polyexponential(n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Any = "cpu") -> torch.Tensor:
    """Like exponential, with the steps' positions raised to the power rho."""
    position = torch.linspace(1, 0, n) ** rho
    return _with_zero((position * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min)).exp(), device)


def _timesteps(inner_model: Any, sigma_min: float, sigma_max: float, n: int) -> torch.Tensor:
    start = float(inner_model.sigma_to_t(torch.tensor(sigma_max)))
    end = float(inner_model.sigma_to_t(torch.tensor(sigma_min)))
    return torch.linspace(start, end, n)


def sgm_uniform(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu") -> torch.Tensor:
    """Evenly spaced timesteps whose last interval ends at zero noise."""
    return _with_zero(inner_model.t_to_sigma(_timesteps(inner_model, sigma_min, sigma_max, n + 1)[:-1]), device)


def normal(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu") -> torch.Tensor:
    """Evenly spaced timesteps between sigma_max and sigma_min."""
    return _with_zero(inner_model.t_to_sigma(_timesteps(inner_model, sigma_min, sigma_max, n)), device)


def simple(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu") -> torch.Tensor:
    """Every (T / n)-th of the model's own sigmas."""
    total = len(inner_model.sigmas)
    return _with_zero([float(inner_model.sigmas[total - 1 - int(i * total / n)]) for i in range(n)], device)


def ddim(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu") -> torch.Tensor:
    """The sigmas at DDIM's timesteps 1, 1 + T/n, 1 + 2T/n ..."""
    total = len(inner_model.sigmas)
    return _with_zero([float(inner_model.sigmas[i]) for i in range(1, total, max(total // n, 1))][::-1], device)


def kl_optimal(n: int, sigma_min: float, sigma_max: float, device: Any = "cpu") -> torch.Tensor:
    """Evenly spaced arctangents of sigma (Sabour et al. 2024); ends at sigma_min, as in the WebUI."""
    return torch.tan(torch.linspace(math.atan(sigma_max), math.atan(sigma_min), n + 1)).to(device)


def align_your_steps(
    n: int, sigma_min: float, sigma_max: float, inner_model: Any = None, device: Any = "cpu"
) -> torch.Tensor:
    """Sabour et al. 2024, interpolated in log sigma for other numbers of steps than ten."""
    sdxl = bool(getattr(getattr(inner_model, "inner_model", None), "is_sdxl", False))
    table = np.log(_ALIGNED_SDXL if sdxl else _ALIGNED_SD)
    if n == len(table):
        return _with_zero(np.exp(table), device)
    return _with_zero(np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(table)), table)), device)


@dataclass
class Scheduler:
    """`function(n=, sigma_min=, sigma_max=, device=[, rho=][, inner_model=])` gives sigmas; None: the sampler's own."""

    name: str
    label: str
    function: Callable[..., Any] | None
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list[str] | None = None


schedulers = [
    Scheduler("automatic", "Automatic", None),
    Scheduler("uniform", "Uniform", uniform, need_inner_model=True),
    Scheduler("karras", "Karras", karras, default_rho=7.0),
    Scheduler("exponential", "Exponential", exponential),
    Scheduler("polyexponential", "Polyexponential", polyexponential, default_rho=1.0),
    Scheduler("sgm_uniform", "SGM Uniform", sgm_uniform, need_inner_model=True, aliases=["SGMUniform"]),
    Scheduler("kl_optimal", "KL Optimal", kl_optimal),
    Scheduler("align_your_steps", "Align Your Steps", align_your_steps, need_inner_model=True),
    Scheduler("simple", "Simple", simple, need_inner_model=True),
    Scheduler("normal", "Normal", normal, need_inner_model=True),
    Scheduler("ddim", "DDIM", ddim, need_inner_model=True, aliases=["ddim_uniform"]),
]
schedulers_map = {**{x.name: x for x in schedulers}, **{x.label: x for x in schedulers}}


def find_scheduler(name: str | None) -> Scheduler | None:
    """The schedule with this label, name or alias, in any case; the first one, "Automatic", for None and ""."""
    if not name:
        return schedulers[0]
    label = names.find_schedule(name, labels())
    return next((item for item in schedulers if item.label == label), None)


def labels() -> dict[str, tuple[str, ...]]:
    """Labels, and the other names of each."""
    return {item.label: (item.name, *(item.aliases or [])) for item in schedulers}
