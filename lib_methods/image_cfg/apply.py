"""Apply image conditioning to one sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import (
    LATENT_CHANNELS,
    NO_PICTURE,
    PIXELS_PER_LATENT,
    DenoiserCall,
    LoadedModel,
    Needs,
    RowPlan,
    Sampling,
    Unsupported,
    picture_of,
)
from lib_methods.image_cfg import formulas
from lib_methods.image_cfg.settings import ImageCfgSettings
from lib_methods.pictures.fit import cut_out, fit, on_latents, to_tensor

NEEDS_PICTURE_MODEL = (
    "This is not an InstructPix2Pix checkpoint. Load one (its UNet has 8 input channels), or make one "
    "from this checkpoint with: python run.py merge-instruct."
)


def unsuited(model: LoadedModel) -> str:
    """Why the method cannot work with this checkpoint; empty if it can."""
    if not model.has_picture:
        return NO_PICTURE
    return "" if model.sees_picture else NEEDS_PICTURE_MODEL


def attach(sampling: Sampling, settings: ImageCfgSettings, load_image: Callable[[str], Image.Image]) -> ImageCfg:
    """Let the image and both scales guide a sampling; returns its part.

    Encodes the image here, before the sampler starts, so that hosts which keep only one model on the device need
    not swap in every step. `load_image` maps an image's hash to the image and raises a sentence for the user if
    it is not there.

    Raises `Unsupported` with a sentence: the checkpoint sees no image, or the host keeps the rows to itself.
    """
    own = picture_of(sampling)
    if not own.has_channels:
        raise Unsupported(NEEDS_PICTURE_MODEL)
    if sampling.is_hires:
        settings = settings.for_hires()
    picture = _picture(sampling, settings, load_image)
    if not torch.isfinite(picture).all():
        raise Unsupported("The VAE gave NaN for the image. Start the WebUI with --no-half-vae, or choose another VAE.")
    scaled = own.is_scaled if settings.latents == "auto" else settings.latents == "scaled"
    picture = picture * own.scale if scaled else picture
    planner = ImageCfg(sampling, settings, picture, _white(sampling, settings, load_image))
    own.add_planner(planner)
    return planner


class ImageCfg:
    """Image conditioning's part in one sampling. Implements `lib_methods.denoiser.RowPlanner`."""

    missed = ""
    idle = "No step used the image."

    def __init__(
        self, sampling: Sampling, settings: ImageCfgSettings, picture: Tensor, white: Tensor | float = 0.0
    ) -> None:
        self.sampling, self.settings, self._picture, self._white = sampling, settings, picture, white
        self.acted = False

    def picture(self) -> Tensor:
        return self._picture

    def plan(self, call: DenoiserCall, text_scale: float, needs: Needs) -> RowPlan:
        self.acted = (
            self.acted or picture_of(self.sampling).has_channels
        )  # not while a refiner without these channels runs
        if isinstance(self._white, Tensor):
            self._white = self._white.to(call.level.device)
        steps = self.sampling.steps
        text, image = self.settings.scales_at(call.step, steps, text_scale)
        scale = formulas.region_scale(image, self.settings.mask_scale_at(call.step, steps), self._white)
        return formulas.plan(text, scale, needs)

    def base(self, plan: RowPlan, image: Tensor, empty: Tensor) -> Tensor:
        return formulas.base(image, empty, plan.image_scale)


def _white(sampling: Sampling, settings: ImageCfgSettings, load_image: Callable[[str], Image.Image]) -> Tensor | float:
    """How white the mask is over the latents, fitted as the image is; 0 where there is no mask."""
    if not settings.mask:
        return 0.0
    image, how = load_image(settings.mask), settings.fit
    if not settings.images and picture_of(sampling).own() is not None:
        how, part = sampling.own_frame()
        image = cut_out(image, part)
    return on_latents(image, *sampling.latent_size, PIXELS_PER_LATENT, how)


def _picture(sampling: Sampling, settings: ImageCfgSettings, load_image: Callable[[str], Image.Image]) -> Tensor:
    """The input image of every image of the batch, (batch, 4, h, w), as the VAE gives it; zeros where there is none."""
    first, count = sampling.batch
    if sampling.is_hires and settings.hires_source == "first pass":
        return picture_of(sampling).first_pass()
    if not settings.images:
        own = picture_of(sampling).own()
        return own if own is not None else torch.zeros(count, LATENT_CHANNELS, *sampling.latent_size)
    chosen = [settings.images[(first + i) % len(settings.images)] for i in range(count)]
    height, width = (side * PIXELS_PER_LATENT for side in sampling.latent_size)
    distinct = sorted(set(chosen))
    pixels = torch.stack([to_tensor(fit(load_image(name), width, height, settings.fit)) for name in distinct])
    return picture_of(sampling).encode(pixels)[[distinct.index(name) for name in chosen]]
