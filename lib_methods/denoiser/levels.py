"""Between sigmas, as samplers in sigma space count noise, and a model's timesteps."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

_SNAP = 1e-3  # timesteps nearer than this to a whole one are that one: hosts cut the rest off


class Levels:
    """A model's noise schedule. `log(alphas_cumprod)` is linear between two timesteps, as in UniPC's schedule."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self._log_abar = np.log(alphas_cumprod.detach().float().cpu().numpy().astype(np.float64))
        self._steps = np.arange(len(self._log_abar), dtype=np.float64)

    @property
    def last(self) -> int:
        """The timestep with the most noise, 999 for Stable Diffusion."""
        return len(self._steps) - 1

    def sigma(self, timestep: float) -> float:
        """The noise at a timestep, which may lie between two of the model's."""
        return math.sqrt(math.expm1(-float(np.interp(timestep, self._steps, self._log_abar))))

    def nearest(self, sigma: float) -> float:
        """The noise within the model's range that is nearest to this."""
        return min(max(sigma, self.sigma(0)), self.sigma(self.last))

    def timestep(self, sigma: float) -> float:
        """The timestep of a sigma, between two of the model's where need be; the ends for what lies beyond them."""
        log_abar = -math.log1p(sigma**2)
        found = float(np.interp(-log_abar, -self._log_abar, self._steps))
        return float(round(found)) if abs(found - round(found)) < _SNAP else found

    def unipc(self, steps: int, start: float, skip_type: str) -> list[float]:
        """The `steps + 1` falling timesteps of UniPC (Zhao et al. 2023), from `start` to 0.

        skip_type: in what they are evenly spaced: "time_uniform" in the timestep, "time_quadratic" in its root,
        "logSNR" in log(alpha / sigma). A timestep t stands for the time (t + 1) / 1000.
        """
        if skip_type == "logSNR":
            signal = 0.5 * self._log_abar
            snr = signal - 0.5 * np.log(-np.expm1(self._log_abar))  # log(alpha / sigma) of every timestep
            first = float(np.interp(start, self._steps, signal))
            first -= 0.5 * math.log(-math.expm1(2 * first))
            wanted = -0.5 * np.logaddexp(0.0, -2 * np.linspace(first, snr[0], steps + 1))
            return [float(t) for t in np.interp(-wanted, -signal, self._steps)]
        power = {"time_uniform": 1, "time_quadratic": 2}[skip_type]
        total = self.last + 1
        times = np.linspace(((start + 1) / total) ** (1 / power), (1 / total) ** (1 / power), steps + 1) ** power
        return [float(t) for t in np.clip(times * total - 1, 0, self.last)]
