"""A pass of the sampler in AUTOMATIC1111's WebUI or the standalone host.

For each pass the host has a `CFGDenoiser` (`p.sampler.model_wrap_cfg`), a new object in most cases; `denoiser.Seam`
stands in front of it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import without_overrides
from lib_methods.denoiser import LATENT_CHANNELS, Guide, Hook, RowPlanner, sees_picture
from lib_methods.hosts.a1111.denoiser import Seam, inner_arguments
from lib_methods.hosts.a1111.editing import A1111Editing
from lib_methods.hosts.job import JobSampling


class A1111Sampling(JobSampling):
    """Implements `lib_methods.denoiser.Sampling`. noise: the `noise` of `process_before_every_sampling`."""

    def __init__(self, p: Any, latent: Tensor | None, noise: Tensor | None = None) -> None:
        super().__init__(p, latent)
        self._noise = noise

    @property
    def seam(self) -> Seam:
        """What stands in front of the denoiser for this pass."""
        if not isinstance(self.current.seam, Seam):
            self.current.seam = Seam(self.current, self.p.sampler.model_wrap_cfg, lambda: self.unet)
        return self.current.seam

    @cached_property
    def picture(self) -> A1111Picture:
        return A1111Picture(self)

    @cached_property
    def editing(self) -> A1111Editing:
        return A1111Editing(self, self.seam, self._noise)

    @property
    def _alphas(self) -> Tensor | None:
        """The schedule of timestep samplers (DDIM, PLMS, UniPC); None where levels are sigmas."""
        alphas: Tensor | None = getattr(self.p.sampler.model_wrap_cfg, "alphas", None)
        return alphas

    def sigma(self, level: Tensor) -> float:
        return super().sigma(level) if self._alphas is None else self.levels.sigma(float(level.item()))

    def level(self, sigma: float) -> Tensor:
        nearest = super().level(sigma)
        return nearest if self._alphas is None else torch.tensor([round(self.levels.timestep(float(nearest)))])

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        if self._alphas is None:  # k-diffusion: the model takes latents plus sigma times noise
            return latents + noise * level.to(latents)
        alpha = self._alphas[int(level.item())].to(latents)  # timestep samplers: the variance stays one
        return latents * alpha.sqrt() + noise * (1 - alpha).sqrt()

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        count = len(noisy)
        cond = inner_arguments(self, self.empty_prompt(), count, noisy)
        with self.seam.paused(), without_overrides(self.unet), torch.no_grad():
            self.p.sampler.model_wrap_cfg.inner_model(noisy, level.to(noisy.device).expand(count), cond=cond)

    def add_hook(self, hook: Hook) -> None:
        _ = self.seam
        super().add_hook(hook)

    def add_guide(self, guide: Guide) -> None:
        self.seam.stand_between()
        super().add_guide(guide)


class A1111Picture:
    """Implements `lib_methods.denoiser.Picture`."""

    def __init__(self, sampling: A1111Sampling) -> None:
        self.sampling, self.p = sampling, sampling.p

    @property
    def has_channels(self) -> bool:
        return sees_picture(self.sampling.unet)

    @property
    def scale(self) -> float:
        return float(getattr(self.p.sd_model, "scale_factor", 1.0))

    @property
    def is_scaled(self) -> bool:
        model = self.p.sd_model
        return bool(getattr(model, "is_sdxl", False)) and getattr(model, "parameterization", "eps") == "v"

    def encode(self, images: Tensor) -> Tensor:
        from modules import devices

        model = self.p.sd_model
        with torch.no_grad():
            modes = [_mode(model, image[None].to(devices.device, devices.dtype_vae)) for image in images]
        return torch.cat(modes).float().to(self.sampling.device)

    def own(self) -> Tensor | None:
        picture = getattr(self.p, "image_conditioning", None)  # the host's, for models that see one: the mode
        if not isinstance(picture, Tensor) or picture.shape[1] != LATENT_CHANNELS:
            return None
        size = self.sampling.latent_size
        if tuple(picture.shape[2:]) != size:  # "latent upscale": the host enlarges latents, so do we
            picture = nn.functional.interpolate(picture.float(), size=size, mode="bilinear")
        return picture.to(self.sampling.device)

    def first_pass(self) -> Tensor:
        from modules import devices

        assert self.sampling.latent is not None
        model = self.p.sd_model
        with torch.no_grad():
            made = [model.decode_first_stage(z[None].to(devices.dtype_vae)).float() for z in self.sampling.latent]
        return self.encode(torch.cat(made).clamp(-1, 1))

    def add_planner(self, planner: RowPlanner) -> None:
        self.sampling.seam.set_planner(planner)


def _mode(model: Any, pixels: Tensor) -> Tensor:
    """The mode of the autoencoder's posterior for pixels (1, 3, H, W), not scaled."""
    encoded = model.encode_first_stage(pixels)
    if not isinstance(encoded, Tensor):
        mode: Tensor = encoded.mode()
        return mode
    # SDXL: scaled already, and drawn from the posterior unless its autoencoder is told not to
    regularization: Any = getattr(model.first_stage_model, "regularization", None)
    if getattr(regularization, "sample", False):
        regularization.sample = False
        try:
            encoded = model.encode_first_stage(pixels)
        finally:
            regularization.sample = True
    return encoded / model.scale_factor
