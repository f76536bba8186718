"""Samplers in alpha space: `sample(model, x, timesteps, extra_args, callback, ...) -> x`.

`model(x, timestep, **extra_args)` returns eps for a batch; `model.inner_model.inner_model.alphas_cumprod` is the noise
schedule. `timesteps` rise; sampling goes through them backwards and ends at the schedule's first entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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
    """DDIM (Song et al. 2021, equations 12 and 16); `eta` 1 is DDPM's noise, 0 none."""
    extra = {} if extra_args is None else extra_args
    schedule = model.inner_model.inner_model.alphas_cumprod  # type: ignore[attr-defined]
    order = [int(t) for t in timesteps]
    ones = x.new_ones(x.shape[0])
    for i, index in enumerate(reversed(range(len(order)))):
        abar = float(schedule[order[index]])
        before = float(schedule[order[index - 1] if index else 0])
        eps = model(x, ones * order[index], **extra)
        denoised = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        if callback is not None:
            callback({"i": i, "x": x, "sigma": 0, "sigma_hat": 0, "denoised": denoised})
        spread = eta * math.sqrt((1 - before) / (1 - abar) * max(0.0, 1 - abar / before))
        x = math.sqrt(before) * denoised + math.sqrt(max(0.0, 1 - before - spread**2)) * eps
        if spread > 0 and noise is not None:
            x = x + spread * noise(0.0, 0.0)
    return x


def sample_unipc(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timesteps: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    variant: str = "bh1",
    order: int = 3,
    lower_order_final: bool = True,
) -> torch.Tensor:
    """UniPC (Zhao et al. 2023) by diffusers' scheduler, at our timesteps. `variant` is "bh1" or "bh2"."""
    extra = {} if extra_args is None else extra_args
    schedule = model.inner_model.inner_model.alphas_cumprod.float().cpu()  # type: ignore[attr-defined]
    steps = timesteps.flip(0).long().cpu()
    betas = 1 - schedule / torch.cat([schedule.new_ones(1), schedule[:-1]])
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=len(schedule),
        trained_betas=betas.tolist(),
        solver_type=variant,
        solver_order=order,
        lower_order_final=lower_order_final,
        prediction_type="epsilon",
    )
    scheduler.set_timesteps(len(steps))
    sigmas = ((1 - schedule) / schedule).sqrt()
    # the scheduler's own spacing is replaced by the host's, which img2img may begin anywhere in; it ends at
    # the schedule's first entry, since the variant "bh1" divides by zero where no noise at all is left
    scheduler.timesteps = steps
    scheduler.sigmas = torch.cat([sigmas[steps], sigmas[:1]])
    ones = x.new_ones(x.shape[0])
    for i, t in enumerate(steps):
        eps = model(x, ones * int(t), **extra)
        if callback is not None:
            abar = float(schedule[t])
            denoised = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
            callback({"i": i, "x": x, "sigma": 0, "sigma_hat": 0, "denoised": denoised})
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return x
