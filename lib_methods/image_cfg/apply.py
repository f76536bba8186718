"""Apply image conditioning to one sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import DenoiserCall, Needs, PictureSampling, Plan, Unsupported
from lib_methods.fabric.images import to_tensor
from lib_methods.image_cfg import formula
from lib_methods.image_cfg.fit import fit
from lib_methods.image_cfg.settings import ImageCfgSettings

NEEDS_PICTURE_MODEL = (
    "This checkpoint sees no picture. Load an InstructPix2Pix checkpoint, whose UNet has 8 input channels, or make one "
    "from this checkpoint with: python run.py merge-instruct."
)


def attach(sampling: PictureSampling, settings: ImageCfgSettings, load_image: Callable[[str], Image.Image]) -> None:
    """Let the picture and both scales guide a sampling.

    Encodes the picture here, before the sampler starts, so that hosts which keep only one model on the device do not
    have to swap in every step. `load_image` maps a picture's hash to the picture and raises a sentence for the user if
    it is not there.

    Raises `Unsupported` with a sentence: the checkpoint sees no picture, or the host keeps the rows to itself.
    """
    if not sampling.takes_picture:
        raise Unsupported(NEEDS_PICTURE_MODEL)
    if sampling.is_hires:
        settings = settings.for_hires()
    picture = _picture(sampling, settings, load_image)
    if not torch.isfinite(picture).all():
        raise Unsupported(
            "The VAE gave NaN for the picture. Start the WebUI with --no-half-vae, or choose another VAE."
        )
    scaled = sampling.wants_scaled_picture if settings.latents == "auto" else settings.latents == "scaled"
    sampling.add_planner(ImageCfg(sampling, settings, picture * sampling.picture_scale if scaled else picture))


class ImageCfg:
    """Image conditioning's part in one sampling. Implements `lib_methods.denoiser.RowPlanner`."""

    def __init__(self, sampling: PictureSampling, settings: ImageCfgSettings, picture: Tensor) -> None:
        self.sampling, self.settings, self._picture = sampling, settings, picture

    def picture(self) -> Tensor:
        return self._picture

    def plan(self, call: DenoiserCall, text_scale: float, needs: Needs) -> Plan:
        return formula.plan(*self.settings.scales_at(call.step, self.sampling.steps, text_scale), needs)

    def base(self, plan: Plan, image: Tensor, empty: Tensor) -> Tensor:
        return formula.base(image, empty, plan.image_scale)


def _picture(sampling: PictureSampling, settings: ImageCfgSettings, load_image: Callable[[str], Image.Image]) -> Tensor:
    """The picture of every image of the batch, (batch, 4, h, w), as the VAE gives it; zeros where there is none."""
    first, count = sampling.batch
    if sampling.is_hires and settings.hires_source == "first pass":
        return sampling.first_pass_picture()
    if not settings.images:
        own = sampling.own_picture()
        return own if own is not None else torch.zeros(count, sampling.latent_channels, *sampling.latent_size)
    chosen = [settings.images[(first + i) % len(settings.images)] for i in range(count)]
    height, width = (side * sampling.pixels_per_latent for side in sampling.latent_size)
    distinct = sorted(set(chosen))
    pixels = torch.stack([to_tensor(fit(load_image(name), width, height, settings.fit)) for name in distinct])
    return sampling.encode_picture(pixels)[[distinct.index(name) for name in chosen]]
