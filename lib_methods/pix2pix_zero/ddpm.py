"""Edit-friendly DDPM inversion (arXiv 2304.06140) for ancestral samplers, in sigma space (x = x0 + sigma * eps).

An ancestral step goes down to sigma_down without noise and adds fresh noise of the size sigma_up. Every picture can be
reached exactly: draw its noisy latents independently of each other, and take for a step's noise what that step lacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_methods.checks import check_number
from lib_methods.pix2pix_zero.inversion import (
    InversionError,
    Predict,
    Progress,
    check_sigmas,
    checked,
    euler_step,
    plain_copy,
    plain_zeros,
)

DDPM = "ddpm"


@dataclass(frozen=True)
class AncestralSettings:
    """The sampler's own noise, and the seed that the noisy latents are drawn with.

    eta: 1 for Euler a and DDPM, 0 to 1; 0 is the deterministic sampler, whose steps need corrections instead of noise.
    noise_scale: the sampler's factor on its noise, s_noise; 0.1 to 2.
    seed: 0 to 2^32 - 1.
    """

    eta: float = 1.0
    noise_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("Eta", self.eta, 0, 1)
        check_number("The scale of the sampler's noise", self.noise_scale, 0.1, 2)
        check_number("The seed of the inversion", self.seed, 0, 2**32 - 1)
        object.__setattr__(self, "seed", int(self.seed))


@dataclass(frozen=True)
class NoisePath:
    """What an ancestral sampler needs to draw a picture again; partial where the work was interrupted.

    sigmas: (steps + 1,), as in `Trajectory`. latents: (steps + 1, batch, 4, h, w), the noise first, the picture last.
    offsets: (steps, batch, 4, h, w), what comes after the part of each step that has no noise. Where the sampler adds
        noise it is `noises` times its size; the last step, to sigma 0, adds none and needs a correction all the same.
    done: steps whose offsets are known, from the first one on; the others hold zeros.
    """

    sigmas: Tensor
    latents: Tensor
    offsets: Tensor
    settings: AncestralSettings
    done: int

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return len(self.sigmas) - 1

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == self.steps

    @property
    def start(self) -> Tensor:
        """The noise that the sampler must start from, (batch, 4, h, w), at sigmas[0]."""
        return self.latents[0]

    @property
    def noises(self) -> Tensor:
        """What the sampler's source of noise must give, (steps, batch, 4, h, w); zeros where it asks for none."""
        levels: list[float] = self.sigmas.tolist()
        noises = torch.zeros_like(self.offsets)
        for index in range(self.steps):
            up = ancestral_levels(levels[index], levels[index + 1], self.settings.eta)[1]
            if up > 0:
                noises[index] = self.offsets[index] / (up * self.settings.noise_scale)
        return noises

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.sigmas, self.latents, self.offsets))

    def to(self, device: torch.device | str) -> NoisePath:
        """The same, with latents and offsets on another device."""
        return replace(self, latents=plain_copy(self.latents, device), offsets=plain_copy(self.offsets, device))


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
    partial: NoisePath | None = None,
) -> NoisePath:
    """The noises with which an ancestral sampler draws exactly this picture; one run of the model per step.

    latent, sigmas, predict, progress, partial, errors: as for `lib_methods.pix2pix_zero.inversion.invert`.
    The noise of a level is drawn once and shared by the pictures of a batch, so a picture's path does not depend on
    what it is batched with.
    """
    settings = settings or AncestralSettings()
    levels = check_sigmas(sigmas)
    path = _begin(latent, levels, settings)
    if partial is not None:
        kept = partial.to(latent.device)
        same = (
            settings == kept.settings and torch.equal(levels, kept.sigmas) and path.latents.shape == kept.latents.shape
        )
        if not same or not torch.equal(path.latents, kept.latents):
            raise ValueError("the inversion that was begun is of another picture or has other settings")
        path.offsets.copy_(kept.offsets)
        path = replace(path, done=kept.done)
    values: list[float] = levels.tolist()
    done = path.done
    while done < path.steps and (progress is None or progress(done, path.steps)):
        path.offsets[done] = path.latents[done + 1] - _quiet_step(path, path.latents[done], done, values, predict)
        done += 1
    return replace(path, done=done)


def reconstruct_ancestral(path: NoisePath, predict: Predict, progress: Progress | None = None) -> Tensor:
    """Draw the picture again with its own noises: latents (batch, 4, h, w) at the last level.

    Raises `InversionError` if the prediction is not finite or `progress` stops it, ValueError for a partial path.
    """
    if not path.complete:
        raise ValueError("the inversion is not finished")
    values: list[float] = path.sigmas.tolist()
    x = path.start
    for index in range(path.steps):
        if progress is not None and not progress(index, path.steps):
            raise InversionError("The reconstruction was interrupted.")
        x = _quiet_step(path, x, index, values, predict) + path.offsets[index]
    return x


def _quiet_step(path: NoisePath, x: Tensor, index: int, values: list[float], predict: Predict) -> Tensor:
    """A step of the sampler without its noise."""
    down = ancestral_levels(values[index], values[index + 1], path.settings.eta)[0]
    return euler_step(x, checked(predict(x, values[index]), path.latents, index), values[index], down)


def _begin(latent: Tensor, levels: Tensor, settings: AncestralSettings) -> NoisePath:
    if latent.dim() != 4 or latent.numel() == 0 or not bool(torch.isfinite(latent).all()):
        raise ValueError("the latent must be finite and of the shape (batch, channels, height, width)")
    steps = len(levels) - 1
    latents = plain_zeros((steps + 1, *latent.shape), latent)
    latents[:] = latent.detach()
    generator = torch.Generator().manual_seed(settings.seed)
    for index in range(steps):
        # on the CPU, so that every device draws the same
        noise = torch.randn(latent.shape[1:], generator=generator).to(latents)
        # only what this level has over the last one, which is already in the latent where the sampler stops above 0
        latents[index] += noise * math.sqrt(float(levels[index]) ** 2 - float(levels[-1]) ** 2)
    return NoisePath(levels, latents, plain_zeros((steps, *latent.shape), latent), settings, 0)
