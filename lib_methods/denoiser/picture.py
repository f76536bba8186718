"""The capability of a sampling to condition the model on an image (InstructPix2Pix).

Such a model has three predictions for an image: e(I, T) sees the image and the prompt, e(I, 0) the image alone, e(0, 0)
neither. A host computes all of them or knows only two; a method that is asked instead names the ones that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lib_methods.denoiser.call import DenoiserCall


class Picture(Protocol):
    """The image that the model is shown in one pass of a sampler, and the rows of its denoiser calls."""

    @property
    def has_channels(self) -> bool:
        """Whether the UNet that the next call runs has channels for an image: twice as many as a latent."""

    @property
    def scale(self) -> float:
        """The factor between what the VAE gives and the latents of this model, 0.18215 for SD1."""

    @property
    def is_scaled(self) -> bool:
        """Whether the checkpoint is known to take the image's latents scaled (CosXL-Edit), not as the VAE gives
        them."""

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to the posterior's mode, (N, 4, H/8, W/8), not scaled."""

    def own(self) -> Tensor | None:
        """The mode of the image that the host itself starts from (img2img), (batch, 4, h, w), not scaled; None where
        it starts from noise."""

    def first_pass(self) -> Tensor:
        """The mode of what the first pass of Hires.fix made, at this pass's size, (batch, 4, h, w), not scaled."""

    def add_planner(self, planner: RowPlanner) -> None:
        """Let a method choose which unconditional rows every denoiser call of this pass computes; the last one
        counts."""


@dataclass(frozen=True)
class Needs:
    """What a denoiser call must know beyond the guided prediction.

    sums_to_one: the weights of every image's prompts under AND add up to 1; always so without AND.
    base: somebody asks for the guidance's base and direction (`Guidance`), not for its sum alone.
    empty: the sampler itself continues with e(0, 0) (DDIM CFG++).
    """

    sums_to_one: bool = True
    base: bool = False
    empty: bool = False


@dataclass(frozen=True)
class RowPlan:
    """The unconditional rows of one call, and its scales: `base(e(I, 0), e(0, 0)) + text_scale * (cond - e(I, 0))`.

    image_scale: one number, or one a position of the latents, (1, 1, h, w).

    with_picture: e(I, 0) is computed. Without it the base stands in its place: right where the sum does not need it.
    without_picture: e(0, 0) is computed. Without it e(I, 0) is the base; with neither, the conditional prediction is
    the result and the scales must be 1.
    """

    text_scale: float
    image_scale: Tensor | float
    with_picture: bool
    without_picture: bool


class RowPlanner(Protocol):
    """A method that chooses the unconditional rows."""

    def picture(self) -> Tensor:
        """What goes beside the latents in rows that see the image, (batch, channels, h, w); zeros in the others."""

    def plan(self, call: DenoiserCall, text_scale: float, needs: Needs) -> RowPlan:
        """The rows of this call. `text_scale` is the host's CFG scale."""

    def base(self, plan: RowPlan, image: Tensor, empty: Tensor) -> Tensor:
        """The guidance's base from e(I, 0) and e(0, 0), shapes (batch, 4, h, w); asked where both are computed."""


def input_channels(unet: nn.Module) -> int | None:
    """Channels that the UNet takes, or None where it does not say. diffusers and Forge keep them in the config, the
    latter in a plain dict, ldm on the module."""
    config: Any = getattr(unet, "config", None)
    channels = config.get("in_channels") if isinstance(config, Mapping) else getattr(config, "in_channels", None)
    channels = getattr(unet, "in_channels", None) if channels is None else channels
    return None if channels is None else int(channels)


def sees_picture(unet: nn.Module, latent_channels: int = 4) -> bool:
    """Whether the UNet takes as many channels again as a latent has."""
    return input_channels(unet) == 2 * latent_channels
