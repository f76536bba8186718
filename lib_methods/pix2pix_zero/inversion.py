"""Inversion: the noise from which a sampler gives an image, in sigma space (x = x0 + sigma * eps).

An Euler step of the probability-flow ODE from sigma_i to sigma_{i+1} is a DDIM step (arXiv 2010.02502, equation 12).
DDIM inversion runs it backwards: between two levels it needs the noise estimate of the upper one, whose latent is not
known yet, and takes the lower latent at the upper level instead. Refinement repeats the step with what was found
(fixed point, arXiv 2403.14602). Direct inversion (arXiv 2310.01506) also keeps what a decoding step then misses by.

For ancestral samplers it is the edit-friendly DDPM inversion (arXiv 2304.06140). An ancestral step goes down to
sigma_down without noise and adds fresh noise of the size sigma_up, so every image can be reached exactly: draw its
noisy latents independently of each other, and use as a step's noise what that step is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_methods.checks import check_number
from lib_methods.denoiser import OwnNoise
from lib_methods.errors import UserError
from lib_methods.pix2pix_zero.noise import StepNoise, ancestral_levels, regularise

DDIM, DIRECT, DDPM = "ddim", "direct", "ddpm"
PAPER = "paper"
REGULARISATIONS = (PAPER, "as published", "off")

Predict = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> denoised: one run of the model on latents (batch, 4, h, w) in sigma space at a level above 0."""
Progress = Callable[[int, int], bool]
"""(steps done, steps in all) -> whether to continue; called before every step."""


class InversionError(UserError):
    """An inversion that cannot be finished; the message says why in the user's words."""


@dataclass(frozen=True)
class InversionSettings:
    """How an image is inverted for a sampler that adds no noise.

    method: "ddim"; or "direct", which costs one more run of the model per step and makes the reconstruction exact.
    refinements: how often a step is repeated with the latent that it led to, one more run of the model each.
    regularisation: how the noise estimates are kept white. seed: of the regularisation's rolls.
    """

    method: str = DIRECT
    refinements: int = 0
    regularisation: str = PAPER
    seed: int = 0


@dataclass(frozen=True)
class AncestralSettings:
    """The noise of an ancestral sampler, and the seed that the noisy latents are drawn with.

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
class Trajectory:
    """An image's latents at every noise level of a sampler; partial where the inversion was interrupted.

    sigmas: (steps + 1,), float32 or better, CPU, falling; the last is 0, or the level where the sampler stops.
    latents: (steps + 1, batch, 4, h, w), in sigma space, in the order of `sigmas`: the noise first, the image last.
        Levels that are not reached yet hold zeros.
    offsets: (steps, batch, 4, h, w), what must be added after the part of each decoding step that has no noise; None
        for "ddim". Where an ancestral sampler adds noise, it is that noise.
    done, total: steps of work that are done, and in all.
    """

    sigmas: Tensor
    latents: Tensor
    offsets: Tensor | None
    settings: InversionSettings | AncestralSettings
    done: int
    total: int

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return len(self.sigmas) - 1

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == self.total

    @property
    def start(self) -> Tensor:
        """The noise that the sampler must start from, (batch, 4, h, w), at sigmas[0]."""
        return self.latents[0]

    @property
    def size(self) -> int:
        """Bytes held."""
        held = (self.sigmas, self.latents) if self.offsets is None else (self.sigmas, self.latents, self.offsets)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def to(self, device: torch.device | str) -> Trajectory:
        """The same, with latents and offsets on another device."""
        with torch.inference_mode(False):  # see `plain_zeros`
            offsets = None if self.offsets is None else self.offsets.to(device)
            return replace(self, latents=self.latents.to(device), offsets=offsets)

    def rows(self, places: Sequence[int]) -> Trajectory:
        """The same for some images of the batch, in the order given."""
        offsets = None if self.offsets is None else self.offsets[:, list(places)]
        return replace(self, latents=self.latents[:, list(places)], offsets=offsets)


def euler_step(x: Tensor, denoised: Tensor, sigma: float, target: float) -> Tensor:
    """x at the level `target`, along the noise that `denoised` leaves of x at the level `sigma` > 0: a DDIM step."""
    return x + (x - denoised) * ((target - sigma) / sigma)


def invert(
    latent: Tensor,
    sigmas: Tensor,
    predict: Predict,
    settings: InversionSettings | None = None,
    progress: Progress | None = None,
    partial: Trajectory | None = None,
) -> Trajectory:
    """Invert an image through all steps of a sampler, from its last level up to its first.

    latent: (batch, 4, h, w), scaled as the model takes it, at the level sigmas[-1] (no noise where that is 0).
    sigmas: (steps + 1,), the levels of the sampler that will decode, falling. The model is asked at sigmas[:-1] only,
        as the decoding does: never at 0.
    predict: must be the model as the reconstruction will ask it: same caption, same CFG scale.
    progress: returning False ends the work; the partial trajectory comes back and may be handed in again as `partial`.
        Going on gives the same bits as never having stopped.

    Raises:
        InversionError: the model's prediction is not finite.
        ValueError: latents or sigmas that cannot be used, or `partial` is of another image, schedule or setting.
    """
    settings = settings or InversionSettings()
    state = begin(latent, sigmas, settings)
    state = state if partial is None else resumed(partial, state)
    levels: list[float] = state.sigmas.tolist()
    steps, latents, offsets = state.steps, state.latents, state.offsets
    done = state.done
    while done < state.total and (progress is None or progress(done, state.total)):
        if done < steps:
            index = steps - 1 - done
            latents[index] = _step_up(latents[index + 1], levels[index + 1], levels[index], predict, settings, done)
        else:
            index = done - steps
            assert offsets is not None
            denoised = checked(predict(latents[index], levels[index]), latents, index)
            offsets[index] = latents[index + 1] - euler_step(latents[index], denoised, levels[index], levels[index + 1])
        done += 1
    return replace(state, done=done)


def psnr(picture: Tensor, original: Tensor, peak: float = 1.0) -> tuple[float, ...]:
    """Peak signal-to-noise ratio of each image in decibels, infinite where nothing differs.

    picture, original: images (batch, ...), same shape. peak: the width of the values' range, 1 for images in [0, 1].
    """
    if picture.shape != original.shape:
        raise ValueError("the images must have the same shape")
    errors = (picture.double() - original.double()).square().flatten(1).mean(1).tolist()
    return tuple(math.inf if error == 0 else 10 * math.log10(peak * peak / error) for error in errors)


def checked(denoised: Tensor, like: Tensor, index: int) -> Tensor:
    """The prediction in the type of `like`, or an `InversionError` that names the step (counted from 0)."""
    if not bool(torch.isfinite(denoised).all()):
        raise InversionError(
            f"The image cannot be inverted: the model's prediction at step {index + 1} is NaN. "
            "Half precision often causes this; try the upcast or no-half settings."
        )
    return denoised.detach().to(like.dtype)


def plain_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros in float32 or better on the device of `like` that may be used in a graph, whatever mode the host is in.

    Some hosts sample in inference mode, and tensors that are made there cannot be kept for the gradients of guidance.
    """
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def begin(latent: Tensor, sigmas: Tensor, settings: InversionSettings | AncestralSettings) -> Trajectory:
    """A trajectory with nothing done. Raises ValueError for latents or sigmas that cannot be used."""
    levels = sigmas.detach().to("cpu", torch.promote_types(sigmas.dtype, torch.float32))
    if levels.dim() != 1 or len(levels) < 2 or not bool(torch.isfinite(levels).all()):
        raise ValueError("the sigmas must be two finite numbers or more")
    if bool((levels[1:] > levels[:-1]).any()) or not bool((levels[:-1] > 0).all()) or bool(levels[-1] < 0):
        raise ValueError("the sigmas must fall, and only the last of them may be 0")
    if latent.dim() != 4 or latent.numel() == 0 or not bool(torch.isfinite(latent).all()):
        raise ValueError("the latent must be finite and of the shape (batch, channels, height, width)")
    steps = len(levels) - 1
    latents = plain_zeros((steps + 1, *latent.shape), latent)
    latents[-1] = latent.detach()
    method = settings.method if isinstance(settings, InversionSettings) else ""
    offsets = None if method == DDIM else plain_zeros((steps, *latent.shape), latent)
    return Trajectory(levels, latents, offsets, settings, 0, 2 * steps if method == DIRECT else steps)


def resumed(partial: Trajectory, begun: Trajectory) -> Trajectory:
    """A copy of a partial trajectory to work on, on the device of the one just begun. Raises ValueError where they are
    of different images, schedules or settings."""
    kept = partial.to(begun.latents.device)
    if begun.settings != kept.settings or not torch.equal(begun.sigmas, kept.sigmas):
        raise ValueError("the saved inversion has other settings")
    if begun.latents.shape != kept.latents.shape or not torch.equal(begun.latents[-1], kept.latents[-1]):
        raise ValueError("the saved inversion is of another image")
    begun.latents.copy_(kept.latents)
    if begun.offsets is not None and kept.offsets is not None:
        begun.offsets.copy_(kept.offsets)
    return replace(begun, done=kept.done)


def _step_up(
    x: Tensor, sigma: float, target: float, predict: Predict, settings: InversionSettings, step: int
) -> Tensor:
    """The latent at the level `target`, one above x at the level `sigma`."""

    def from_estimate(guess: Tensor) -> Tensor:
        noise = (guess - checked(predict(guess, target), x, step)) / target
        if settings.regularisation != "off":
            # The same rolls for every refinement of a step: only then is there a point to converge to.
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            noise = regularise(noise, generator, keep_variance=settings.regularisation == PAPER)
        return x + noise * (target - sigma)

    # The model sees the lower latent as it is, at the variance of the upper level, as DDIM inversion does in alpha
    # space, where both have variance 1.
    found = from_estimate(x * math.sqrt((1 + target**2) / (1 + sigma**2)))
    kept, least = found, torch.full((len(x), 1, 1, 1), math.inf, dtype=x.dtype, device=x.device)
    for _ in range(settings.refinements):
        refined = from_estimate(found)
        # By how much decoding from `found` would miss x. An image for which that grows goes back to its best latent,
        # and stays there.
        missed = (refined - found).square().mean((1, 2, 3), keepdim=True)
        closer = missed < least
        kept, least = torch.where(closer, found, kept), torch.where(closer, missed, least)
        found = torch.where(closer, refined, kept)
    return found


def invert_ancestral(
    latent: Tensor,
    sigmas: Tensor,
    predict: Predict,
    settings: AncestralSettings | None = None,
    progress: Progress | None = None,
    partial: Trajectory | None = None,
) -> Trajectory:
    """The noises with which an ancestral sampler generates exactly this image; one run of the model per step.

    latent, sigmas, predict, progress, partial, errors: as for `invert`.
    The noise of a level is drawn once and shared by the images of a batch, so an image's path does not depend on
    what it is batched with.
    """
    settings = settings or AncestralSettings()
    path = begin(latent, sigmas, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    path.latents[:] = path.latents[-1].clone()
    for index in range(path.steps):
        # on the CPU, so that every device draws the same
        noise = torch.randn(path.latents.shape[2:], generator=generator).to(path.latents)
        # only what this level has over the last one, which is already in the latent where the sampler stops above 0
        path.latents[index] += noise * math.sqrt(float(path.sigmas[index]) ** 2 - float(path.sigmas[-1]) ** 2)
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


def noise_of(path: Trajectory) -> StepNoise:
    """The noise with which an ancestral sampler makes the image again, from what each of its steps lacks."""
    settings, offsets = path.settings, path.offsets
    assert isinstance(settings, AncestralSettings) and offsets is not None
    levels: list[float] = path.sigmas.tolist()

    def noise(step: int) -> Tensor:
        up = ancestral_levels(levels[step], levels[step + 1], settings.eta)[1]
        return offsets[step] / (up * settings.noise_scale) if up > 0 else torch.zeros_like(offsets[step])

    return StepNoise(levels, OwnNoise(settings.eta, settings.noise_scale), noise)
