"""The solvers of the pixel stages: diffusers' own, with our threshold in the one place where they all have theirs.

DDPM with learned variance (Nichol and Dhariwal 2021, arXiv 2102.09672), DPM-Solver++ 2M (arXiv 2211.01095), and DDIM,
which is DPM-Solver++ of first order; unlike diffusers' DDIM that one follows any list of timesteps, and its noise
follows from the thresholded image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.pipelines.deepfloyd_if import timesteps as published
from torch import Tensor

from lib_methods.cascade.augmentation import noised
from lib_methods.cascade.settings import SOLVERS, TIMESTEPS
from lib_methods.checks import SettingsError


def timestep_list(name: str, steps: int, config: Mapping[str, Any]) -> list[int]:
    """The timesteps from the noisiest on: evenly spaced ones as the scheduler's configuration says, or a published
    list. Raises SettingsError where the schedule has fewer."""
    if name not in TIMESTEPS:
        raise SettingsError(f"Timesteps must be one of: {', '.join(TIMESTEPS)}.")
    there = int(config.get("num_train_timesteps", 1000))
    found: Any = [] if name == "even" else getattr(published, f"{name}_timesteps")
    if max(steps if name == "even" else 0, *found, 0) > there - (name != "even"):
        raise SettingsError(f"The model has {there} timesteps. Choose fewer steps, or evenly spaced timesteps.")
    if name != "even":
        return [int(step) for step in found]
    scheduler = DDPMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    return [int(step) for step in scheduler.timesteps]


class Solver:
    """Takes a batch from noise to images, step by step; one object for one batch.

    name: one of `SOLVERS`. config: of the stage's scheduler. threshold: on predicted images. timesteps: descending.
    has_variance: whether the UNet's output has the variance in its second half.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        threshold: Callable[[Tensor], Tensor],
        timesteps: Sequence[int],
        has_variance: bool = True,
    ) -> None:
        if name not in SOLVERS:
            raise SettingsError(f"The solver must be one of: {', '.join(SOLVERS)}.")
        self.is_ddpm = name == "DDPM"
        common = {"thresholding": True, "clip_sample": False}
        learned = config.get("variance_type") in ("learned", "learned_range")
        self.uses_variance = self.is_ddpm and learned and has_variance
        if self.is_ddpm:
            variance = {"variance_type": "fixed_small"} if learned and not has_variance else {}
            self._scheduler: Any = DDPMScheduler.from_config(dict(config), **common, **variance)
        else:
            own = {"algorithm_type": "dpmsolver++", "solver_order": 1 if name == "DDIM" else 2, "variance_type": None}
            spaced = {"use_karras_sigmas": False, "use_lu_lambdas": False, "final_sigmas_type": "zero"}
            self._scheduler = DPMSolverMultistepScheduler.from_config(dict(config), **common, **own, **spaced)
        self._scheduler._threshold_sample = threshold
        self.timesteps = tuple(timesteps)
        self._scheduler.set_timesteps(timesteps=list(timesteps))

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) of the noise schedule."""
        return self._scheduler.alphas_cumprod

    def step(self, out: Tensor, timestep: int, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The images at the next timestep, in fp32. out: (B, C or 2C, H, W), the UNet's, guided. images: (B, C, H, W).
        generators: one for each image, which draws the noise that DDPM adds."""
        if not self.uses_variance:
            out = out[:, : images.shape[1]]
        options: dict[str, Any] = {"generator": list(generators)} if self.is_ddpm else {}
        step = torch.tensor(timestep)
        return self._scheduler.step(out.float(), step, images, **options, return_dict=False)[0]

    def noised(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images at the noise of the first timestep. images, noise: (B, C, H, W)."""
        return noised(images, noise, self.alphas_cumprod[self.timesteps[0]])
