"""Samplers in sigma space: plain functions `sample(model, x, sigmas, extra_args, callback, ...) -> x`.

`model(x, sigma, **extra_args)` returns the denoised latents; `sigmas` falls to 0 in the end. `noise(sigma, sigma_next)`
gives fresh unit noise of x's shape: the host draws it per image from the image's own seed, so that the size of a batch
changes no image. `callback` gets a dict with the index, x, sigma and denoised of every step.

Written from the papers: Karras et al. 2022 (Euler, Heun; algorithms 1 and 2), Song et al. 2021 (ancestral steps), Lu et
al. 2022, "DPM-Solver++" (2M, SDE), Luo et al. 2023 (LCM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

Model = Callable[..., torch.Tensor]
Noise = Callable[[float, float], torch.Tensor]
Callback = Callable[[dict[str, Any]], None]


class _Run:
    """What all samplers share: calling the model for a whole batch, and reporting a step."""

    def __init__(
        self, model: Model, x: torch.Tensor, extra_args: dict[str, Any] | None, callback: Callback | None
    ) -> None:
        self.model, self.extra, self.callback = model, {} if extra_args is None else extra_args, callback
        self.ones = x.new_ones(x.shape[0])

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.model(x, self.ones * sigma, **self.extra)

    def report(self, index: int, x: torch.Tensor, sigma: float, denoised: torch.Tensor) -> None:
        if self.callback is not None:
            self.callback({"i": index, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})


def _steps(sigmas: torch.Tensor) -> Iterator[tuple[int, float, float]]:
    values = [float(sigma) for sigma in sigmas]
    return ((i, a, b) for i, (a, b) in enumerate(zip(values, values[1:])))


def ancestral_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Splits a step down to `sigma_next` into a deterministic part down to the first number and noise of the second."""
    if eta == 0 or sigma_next == 0:
        return sigma_next, 0.0
    up = min(sigma_next, eta * sigma_next / sigma * math.sqrt(sigma**2 - sigma_next**2))
    return math.sqrt(sigma_next**2 - up**2), up


def _churned(
    x: torch.Tensor,
    sigma: float,
    steps: int,
    noise: Noise | None,
    churn: float,
    tmin: float,
    tmax: float,
    s_noise: float,
) -> tuple[torch.Tensor, float]:
    """Karras et al.'s algorithm 2, line 4 to 6: some noise added before the step."""
    gamma = min(churn / steps, math.sqrt(2) - 1) if churn > 0 and tmin <= sigma <= tmax else 0.0
    if gamma == 0 or noise is None:
        return x, sigma
    raised = sigma * (gamma + 1)
    return x + noise(sigma, raised) * s_noise * math.sqrt(raised**2 - sigma**2), raised


def sample_euler(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """Euler's method on the probability flow ODE."""
    run = _Run(model, x, extra_args, callback)
    for i, sigma, after in _steps(sigmas):
        x, sigma = _churned(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        x = x + (x - denoised) * ((after - sigma) / sigma)
    return x


def sample_heun(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """Heun's method: every step but the last calls the model twice."""
    run = _Run(model, x, extra_args, callback)
    for i, sigma, after in _steps(sigmas):
        x, sigma = _churned(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        slope = (x - denoised) / sigma
        if after > 0:
            ahead = x + slope * (after - sigma)
            slope = (slope + (ahead - run.denoise(ahead, after)) / after) / 2
        x = x + slope * (after - sigma)
    return x


def sample_euler_ancestral(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """Euler's method with ancestral noise."""
    run = _Run(model, x, extra_args, callback)
    for i, sigma, after in _steps(sigmas):
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        down, up = ancestral_split(sigma, after, eta)
        x = x + (x - denoised) * ((down - sigma) / sigma)
        if up > 0 and noise is not None:
            x = x + noise(sigma, after) * s_noise * up
    return x


def sample_dpmpp_2m(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022b, in the variable lambda = -log sigma."""
    run = _Run(model, x, extra_args, callback)
    previous: torch.Tensor | None = None
    last_h = 0.0
    for i, sigma, after in _steps(sigmas):
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        if after == 0:
            x = denoised
        else:
            h = math.log(sigma) - math.log(after)
            target = denoised
            if previous is not None:
                weight = h / (2 * last_h)
                target = (1 + weight) * denoised - weight * previous
            x = (after / sigma) * x - math.expm1(-h) * target
            last_h = h
        previous = denoised
    return x


def sample_dpmpp_2m_sde(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """SDE-DPM-Solver++(2M) with the midpoint correction."""
    run = _Run(model, x, extra_args, callback)
    previous: torch.Tensor | None = None
    last_h = 0.0
    for i, sigma, after in _steps(sigmas):
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        if after == 0:
            x = denoised
        else:
            h = math.log(sigma) - math.log(after)
            drift = -math.expm1(-h * (1 + eta))
            x = (after / sigma) * math.exp(-h * eta) * x + drift * denoised
            if previous is not None:
                x = x + 0.5 * drift * (h / last_h) * (denoised - previous)
            if eta > 0 and noise is not None:
                x = x + noise(sigma, after) * after * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise
            last_h = h
        previous = denoised
    return x


def sample_dpmpp_sde(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> torch.Tensor:
    """SDE-DPM-Solver++(2S): a half step to the point `r` of the way in log sigma, then the whole step from there.

    The noise of the half step and of the whole step belong to one Brownian motion in sigma: the first is a part of
    the second. Two independent draws give both.
    """
    run = _Run(model, x, extra_args, callback)
    for i, sigma, after in _steps(sigmas):
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        if after == 0:
            x = x + (x - denoised) * ((after - sigma) / sigma)
            continue
        middle = math.exp(math.log(sigma) + r * (math.log(after) - math.log(sigma)))
        near: torch.Tensor | None = None
        whole: torch.Tensor | None = None
        if eta > 0 and noise is not None:
            near = noise(sigma, middle)
            rest = noise(middle, after)
            share = (sigma - middle) / (sigma - after)
            whole = math.sqrt(share) * near + math.sqrt(1 - share) * rest
        down, up = ancestral_split(sigma, middle, eta)
        half = (down / sigma) * x + (1 - down / sigma) * denoised
        if near is not None:
            half = half + near * s_noise * up
        denoised_half = run.denoise(half, middle)
        down, up = ancestral_split(sigma, after, eta)
        weight = 1 / (2 * r)
        target = (1 - weight) * denoised + weight * denoised_half
        x = (down / sigma) * x + (1 - down / sigma) * target
        if whole is not None:
            x = x + whole * s_noise * up
    return x


def sample_lcm(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
) -> torch.Tensor:
    """Multistep consistency sampling: jump to the denoised image, add noise of the next sigma, repeat."""
    run = _Run(model, x, extra_args, callback)
    for i, sigma, after in _steps(sigmas):
        denoised = run.denoise(x, sigma)
        run.report(i, x, sigma, denoised)
        x = denoised + noise(sigma, after) * after if after > 0 and noise is not None else denoised
    return x
