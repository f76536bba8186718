"""The two pixel stages: text to a small image, and that image to a larger one; from noise, from an image, with a mask.

All of it in fp32 but the UNet itself. Every image has its own generator, so its noise does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.cascade.augmentation import enlarged, noised
from lib_methods.cascade.folder import Stage
from lib_methods.cascade.settings import CascadeSettings
from lib_methods.cascade.solvers import Solver, timestep_list
from lib_methods.cascade.thresholding import Threshold
from lib_methods.checks import SettingsError
from lib_methods.guidance import combine

Tick = Callable[[int, int], None]
"""Told after each step how many are done of how many. What it raises stops the stage between two steps."""


@dataclass(frozen=True)
class Texts:
    """What a stage is told, for each image: (B, T, D). negative: None without guidance."""

    positive: Tensor
    negative: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """For one pass through the UNet, the negative ones first."""
        return self.positive if self.negative is None else torch.cat([self.negative, self.positive])


@dataclass(frozen=True)
class Start:
    """An image to change instead of pure noise. image: (1 or B, C, H, W) in [-1, 1]. mask: (1 or B, 1, H, W), 1 where
    it may change, None for all of it. strength: 0 to 1, the share of the steps."""

    image: Tensor
    strength: float
    mask: Tensor | None = None


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One for each image, on the CPU, so that every device gives the same images."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(shape: Sequence[int], chance: Sequence[torch.Generator]) -> Tensor:
    """Noise of each generator, (B, *shape)."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in chance])


def check_size(stage: Stage, width: int, height: int) -> None:
    """Raises SettingsError for an image size that the stage's UNet cannot take."""
    step = stage.multiple
    if width % step or height % step or min(width, height) < step:
        raise SettingsError(
            f"{width}x{height} does not fit {stage.folder.name}: width and height must be multiples of {step}."
        )


def stage_timesteps(stage: Stage, settings: CascadeSettings, start: Start | None) -> list[int]:
    """A pixel stage's timesteps, descending; none where the image must not change."""
    asked = settings.stage(stage.number)
    found = timestep_list(asked.timesteps, asked.steps, stage.scheduler)
    return found if start is None else found[len(found) - min(int(len(found) * start.strength), len(found)) :]


@torch.no_grad()
def pixel_stage(
    unet: nn.Module,
    stage: Stage,
    settings: CascadeSettings,
    texts: Texts,
    chance: Sequence[torch.Generator],
    size: tuple[int, int],
    *,
    small: Tensor | None = None,
    start: Start | None = None,
    device: torch.device | None = None,
    tick: Tick = lambda done, total: None,
) -> Tensor:
    """The images of stage I, or of stage II for `small` ones; (B, 3, H, W) on the device, about [-1, 1].

    chance: a generator for each image. size: (height, width). small: (B, 3, h, w) in [-1, 1], enlarged and noised to
    the stage's noise level, which the UNet is told. start: see `Start`.
    """
    asked = settings.stage(stage.number)
    check_size(stage, size[1], size[0])
    device = device or next(unet.parameters()).device
    timesteps = stage_timesteps(stage, settings, start)
    if start is not None and not timesteps:
        return start.image.to(device).float().expand(len(chance), -1, -1, -1)
    threshold, has_variance = (
        Threshold.of(settings, stage.scheduler),
        stage.unet.config["out_channels"] > stage.channels,
    )
    solver = Solver(asked.solver, stage.scheduler, threshold, timesteps, has_variance)
    shape = (stage.channels, *size)
    images = draw(shape, chance).to(device)
    mask = None
    if start is not None:
        whole = start.image.to(device).float()
        images = solver.noised(whole, images)
        if start.mask is not None:
            mask = start.mask.to(device).float()
            images = (1 - mask) * whole + mask * images
    condition: tuple[Tensor, int] | None = None
    if small is not None:
        level = stage.noise_level if asked.noise_level < 0 else asked.noise_level
        condition = _condition(stage, small.to(device).float(), size, level, draw(shape, chance).to(device))
    rows = texts.rows.to(device, _dtype(unet))
    for done, timestep in enumerate(timesteps, 1):
        out = _predicted(unet, images, timestep, rows, asked.guidance, condition)
        before, images = images, solver.step(out, timestep, images, chance)
        if mask is not None:
            images = (1 - mask) * before + mask * images
        tick(done, len(timesteps))
    return images


def _condition(stage: Stage, small: Tensor, size: tuple[int, int], level: int, noise: Tensor) -> tuple[Tensor, int]:
    """What the super-resolution UNet is shown of the small images, and the noise level that it is told."""
    from diffusers import DDPMScheduler

    alphas = DDPMScheduler.from_config(dict(stage.noising or {})).alphas_cumprod
    if level >= len(alphas):
        raise SettingsError(f"{stage.folder.name} knows noise levels up to {len(alphas) - 1}, not {level}.")
    return noised(enlarged(small, size), noise, alphas[level]), level


def _predicted(
    unet: nn.Module,
    images: Tensor,
    timestep: int,
    rows: Tensor,
    guidance: float,
    condition: tuple[Tensor, int] | None,
) -> Tensor:
    """What the UNet makes of images (B, C, H, W) with guidance: (B, C or 2C, H, W), the second half being the
    variance that it learned, of the positive prompt."""
    channels, times = images.shape[1], len(rows) // len(images)
    shown = images if condition is None else torch.cat([images, condition[0]], dim=1)
    options: dict[str, Any] = {"encoder_hidden_states": rows, "return_dict": False}
    if condition is not None:
        options["class_labels"] = torch.full((len(rows),), condition[1], device=images.device)
    shown = torch.cat([shown] * times).to(_dtype(unet))
    out = unet(shown, torch.tensor(timestep, device=images.device), **options)[0].float()
    if times == 1:
        return out
    negative, positive = out.chunk(2)
    base = negative[:, :channels]
    noise = combine(base, positive[:, :channels] - base, guidance)
    return torch.cat([noise, positive[:, channels:]], dim=1)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
