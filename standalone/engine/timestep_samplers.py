"""Samplers in alpha space: `sample(model, x, timesteps, extra_args, callback, ...) -> x`.

`model(x, timestep, **extra_args)` returns eps for a batch; `model.inner_model.inner_model.alphas_cumprod` is the noise
schedule. `timesteps` rise; sampling goes through them backwards. Which of them are used, and when the callback is
called, is as in the WebUI: the same request then gives the same image there and here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from .samplers import Callback, Noise


def sample_ddim(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timesteps: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> torch.Tensor:
    """DDIM (Song et al. 2021, equations 12 and 16); `eta` 1 is DDPM's noise, 0 none.

    The first of `timesteps`, nearly without noise, is where sampling ends: the model is not asked about it.
    """
    extra = {} if extra_args is None else extra_args
    schedule = model.inner_model.inner_model.alphas_cumprod  # type: ignore[attr-defined]
    falling = [int(t) for t in timesteps.flip(0)]
    ones = x.new_ones(x.shape[0])
    for i, (t, following) in enumerate(zip(falling, falling[1:])):
        abar, after = float(schedule[t]), float(schedule[following])
        eps = model(x, ones * t, **extra)
        denoised = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        spread = eta * math.sqrt((1 - after) / (1 - abar) * max(0.0, 1 - abar / after))
        x = math.sqrt(after) * denoised + math.sqrt(max(0.0, 1 - after - spread**2)) * eps
        if spread > 0 and noise is not None:
            x = x + spread * noise(0.0, 0.0)
        if callback is not None:
            callback({"i": i, "x": x, "sigma": 0, "sigma_hat": 0, "denoised": denoised})
    return x


def unipc_timesteps(abar: np.ndarray, steps: int, start: float, skip_type: str) -> np.ndarray:
    """`steps + 1` falling timesteps, fractional ones too, from `start` to 0.

    `abar` (T,) is the noise schedule. `skip_type` says in what they are evenly spaced: "time_uniform" in the timestep,
    "time_quadratic" in its root, "logSNR" in log(alpha / sigma).
    """
    total = len(abar)
    if skip_type == "logSNR":
        log_snr = 0.5 * np.log(abar / (1 - abar))  # falls with the timestep
        indices = np.arange(total)
        first = np.interp(start, indices, log_snr)
        log_alpha = -0.5 * np.logaddexp(0.0, -2 * np.linspace(first, log_snr[0], steps + 1))
        return np.interp(-log_alpha, -0.5 * np.log(abar), indices)
    power = {"time_uniform": 1, "time_quadratic": 2}[skip_type]
    # timestep t of the schedule is the time (t + 1) / T
    times = np.linspace(((start + 1) / total) ** (1 / power), (1 / total) ** (1 / power), steps + 1) ** power
    return np.clip(times * total - 1, 0, total - 1)


def sample_unipc(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timesteps: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    is_img2img: bool = False,
    variant: str = "bh1",
    order: int = 3,
    lower_order_final: bool = True,
    skip_type: str = "time_uniform",
) -> torch.Tensor:
    """UniPC (Zhao et al. 2023) by diffusers' scheduler. `variant` is "bh1" or "bh2", `skip_type` see unipc_timesteps.

    As many steps as there are `timesteps`, spread again: from the last of the schedule, in img2img from the last of
    `timesteps`, to the schedule's first entry. A step is done, and the callback called, when the model was asked where
    the step leads to and the corrector has used the answer: one call of the model later than in other samplers. What
    the callback writes into the latents is what the next step starts from.
    """
    if len(timesteps) == 0:
        return x
    extra = {} if extra_args is None else extra_args
    schedule = model.inner_model.inner_model.alphas_cumprod.float().cpu()  # type: ignore[attr-defined]
    betas = 1 - schedule / torch.cat([schedule.new_ones(1), schedule[:-1]])
    scheduler = _ReportingUniPC(
        num_train_timesteps=len(schedule),
        trained_betas=betas.tolist(),
        solver_type=variant,
        solver_order=order,
        lower_order_final=lower_order_final,
        prediction_type="epsilon",
    )
    abar = schedule.double().numpy()
    start = float(timesteps[-1]) if is_img2img else len(abar) - 1.0
    path = unipc_timesteps(abar, len(timesteps), start, skip_type)
    # between two entries of the schedule log(alpha) is linear
    on_path = np.exp(np.interp(path, np.arange(len(abar)), np.log(abar)))
    scheduler.set_timesteps(len(timesteps))
    # the scheduler's own spacing is replaced; it ends at the schedule's first entry, since the variant "bh1" divides
    # by zero where no noise at all is left
    scheduler.timesteps = torch.from_numpy(path[:-1]).float()
    scheduler.sigmas = torch.from_numpy(np.sqrt((1 - on_path) / on_path)).float()
    scheduler.set_begin_index(0)

    done = 0

    def report(latents: torch.Tensor, denoised: torch.Tensor) -> None:
        nonlocal done
        if callback is not None:
            callback({"i": done, "x": latents, "sigma": 0, "sigma_hat": 0, "denoised": denoised})
        done += 1

    scheduler.report = report
    ones = x.new_ones(x.shape[0])
    for t in scheduler.timesteps:
        eps = model(x, ones * float(t), **extra)
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    report(x, scheduler.model_outputs[-1])
    return x


class _ReportingUniPC(UniPCMultistepScheduler):
    """Shows the latents of every step to `report(latents, denoised)`, between its corrector and its predictor."""

    report: Callable[[torch.Tensor, torch.Tensor], None]

    def multistep_uni_c_bh_update(self, this_model_output: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        corrected = super().multistep_uni_c_bh_update(this_model_output, *args, **kwargs)
        self.report(corrected, this_model_output)
        return corrected
