"""Edit-friendly DDPM inversion (arXiv 2304.06140) for ancestral samplers, in sigma space (x = x0 + sigma * eps).

An ancestral step goes down to sigma_down without noise and adds fresh noise of the size sigma_up. Every picture can be
reached exactly: draw its noisy latents independently of each other, and take for a step's noise what that step lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lib_methods.denoiser import OwnNoise
from lib_methods.pix2pix_zero.inversion import (
    AncestralSettings,
    Predict,
    Progress,
    Trajectory,
    begin,
    checked,
    euler_step,
    resumed,
)

DDPM = "ddpm"


def ancestral_levels(sigma: float, target: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up) of a step from `sigma` to `target`: the level it goes down to, and the noise it adds.

    sigma_down^2 + sigma_up^2 = target^2; with eta 1 that is a step of DDPM.
    """
    up = min(target, eta * target * math.sqrt(max(0.0, sigma**2 - target**2)) / sigma)
    return math.sqrt(max(0.0, target**2 - up**2)), up


def invert_ancestral(
    latent: Tensor,
    sigmas: Tensor,
    predict: Predict,
    settings: AncestralSettings | None = None,
    progress: Progress | None = None,
    partial: Trajectory | None = None,
) -> Trajectory:
    """The noises with which an ancestral sampler draws exactly this picture; one run of the model per step.

    latent, sigmas, predict, progress, partial, errors: as for `lib_methods.pix2pix_zero.inversion.invert`.
    The noise of a level is drawn once and shared by the pictures of a batch, so a picture's path does not depend on
    what it is batched with.
    """
    settings = settings or AncestralSettings()
    path = begin(latent, sigmas, settings)
    _add_noise(path, settings)
    if partial is not None:
        if not torch.equal(path.latents, partial.latents.to(latent.device)):
            raise ValueError("the saved inversion is of another image or has other settings")
        path = resumed(partial, path)
    offsets, levels, done = path.offsets, path.sigmas.tolist(), path.done
    assert offsets is not None
    while done < path.steps and (progress is None or progress(done, path.steps)):
        x, (sigma, target) = path.latents[done], levels[done : done + 2]
        down = ancestral_levels(sigma, target, settings.eta)[0]
        quiet = euler_step(x, checked(predict(x, sigma), x, done), sigma, down)
        offsets[done] = path.latents[done + 1] - quiet
        done += 1
    return replace(path, done=done)


def _add_noise(path: Trajectory, settings: AncestralSettings) -> None:
    """Write the noisy latents of every level: the noise of a level is drawn once for all images."""
    generator = torch.Generator().manual_seed(settings.seed)
    path.latents[:] = path.latents[-1].clone()
    for index in range(path.steps):
        # on the CPU, so that every device draws the same
        noise = torch.randn(path.latents.shape[2:], generator=generator).to(path.latents)
        # only what this level has over the last one, which is already in the latent where the sampler stops above 0
        path.latents[index] += noise * math.sqrt(float(path.sigmas[index]) ** 2 - float(path.sigmas[-1]) ** 2)


class StepNoise:
    """Noise by step, drawn in the sampler's order when it is first asked for, whoever asks.

    levels: the sampler's, (steps + 1). source: gives the noise of a step, counted from 0, (batch, 4, h, w); asked once
    for each step that adds some, in order.
    """

    def __init__(self, levels: list[float], own: OwnNoise, source: Callable[[int], Tensor]) -> None:
        self._source, self._scale = source, own.scale
        self._steps = [ancestral_levels(here, there, own.eta) for here, there in zip(levels, levels[1:])]
        self._drawn: list[Tensor] = []  # of the steps that add noise, which are the first ones
        self._given = 0

    def down(self, step: int) -> float:
        """The level that a step goes down to before its noise is added."""
        return self._steps[step][0]

    def adds(self, step: int) -> bool:
        """Whether a step adds noise."""
        return self._steps[step][1] > 0

    def added(self, step: int) -> Tensor | float:
        """What a step adds, (batch, 4, h, w); 0 where it adds nothing."""
        return self._noise(step) * (self._steps[step][1] * self._scale) if self.adds(step) else 0.0

    def next(self) -> Tensor:
        """As the sampler asks for it: the next step's noise, of size one."""
        self._given += 1
        return self._noise(self._given - 1)

    def _noise(self, step: int) -> Tensor:
        while len(self._drawn) <= step:
            self._drawn.append(self._source(len(self._drawn)))
        return self._drawn[step]


def noise_of(path: Trajectory) -> StepNoise:
    """The noise with which an ancestral sampler makes the image again, from what each of its steps lacks."""
    settings, offsets = path.settings, path.offsets
    assert isinstance(settings, AncestralSettings) and offsets is not None
    levels: list[float] = path.sigmas.tolist()

    def noise(step: int) -> Tensor:
        up = ancestral_levels(levels[step], levels[step + 1], settings.eta)[1]
        return offsets[step] / (up * settings.noise_scale) if up > 0 else torch.zeros_like(offsets[step])

    return StepNoise(levels, OwnNoise(settings.eta, settings.noise_scale), noise)
