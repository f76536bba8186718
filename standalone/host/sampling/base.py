"""Shared by all samplers: the base class, latents to images and back, previews."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from standalone.host import devices, images, shared
from standalone.host.callbacks import ExtraNoiseParams, extra_noise_callback
from standalone.host.sampling.refiner import apply_refiner as apply_refiner
from standalone.host.shared import opts, state

LARGE_DECODER = 10_000_000
_maps: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()


def _decoder_is_large(model: Any) -> bool:
    """Whether a preview by the VAE itself would slow the sampling down; below this it is fast enough."""
    return sum(p.numel() for p in model.first_stage_model.decoder.parameters()) > LARGE_DECODER


def _fit(model: Any) -> torch.Tensor:
    """Least-squares map (C + 1, 3) from a latent's channels and a one to the mean colour of its pixels.

    Fitted once per model to what its own VAE makes of random latents, so it holds for any VAE.
    """
    generator = torch.Generator().manual_seed(0)
    channels = model.latent_channels
    # smooth latents, like an image's: noise at half the resolution, enlarged
    coarse = torch.randn(1, channels, 8, 8, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear").to(model.device, model.dtype)
    colours = torch.nn.functional.adaptive_avg_pool2d(model.decode_first_stage(latents).float(), (16, 16))
    inputs = latents.float().permute(0, 2, 3, 1).reshape(-1, channels)
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1).cpu()
    return torch.linalg.lstsq(inputs, colours.permute(0, 2, 3, 1).reshape(-1, 3).cpu()).solution


def _linear_decode(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, h, w), one pixel per latent, about [-1, 1]."""
    if model not in _maps:
        with torch.no_grad():
            _maps[model] = _fit(model)
    weights = _maps[model].to(latents.device)
    colours = torch.einsum("bchw,cr->brhw", latents.float(), weights[:-1])
    return colours + weights[-1].reshape(1, 3, 1, 1)


class InterruptedException(BaseException):
    """Sampling was interrupted or skipped; the latents so far are used."""


class _SamplerTuple(NamedTuple):
    name: str
    constructor: Callable[[Any], Any]
    aliases: list[str]
    options: dict[str, Any]


class SamplerData(_SamplerTuple):
    """A sampler in the list of choices."""

    __slots__ = ()

    def total_steps(self, steps: int) -> int:
        """Calls of the denoiser in `steps` steps; about, since second-order samplers make the last step with one."""
        return steps * 2 if self.options.get("second_order", False) else steps


def setup_img2img_steps(p: Any, steps: int | None = None) -> tuple[int, int]:
    """Steps of the whole schedule, and the index (from the end) of the step that img2img begins with."""
    strength = min(p.denoising_strength, 0.999)
    if opts.img2img_fix_steps or steps is not None:
        requested = int(steps or p.steps)
        total = max(requested, int(requested / strength)) if strength > 0 else requested
        return total, requested - 1 if strength > 0 else 0
    return p.steps, int(strength * p.steps)


approximation_indexes = {"Full": 0, "Approx NN": 1, "Approx cheap": 2, "TAESD": 3}


def samples_to_images_tensor(sample: torch.Tensor, approximation: int | None = None, model: Any = None) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1] of latents; `approximation` None is the live preview's method, 0 the VAE."""
    model = model or shared.sd_model
    if approximation is None:
        method = opts.show_progress_type
        cheap = method == "Approx cheap" or (method == "Auto" and _decoder_is_large(model))
        approximation = 2 if cheap else 0
    if approximation == 0:
        return model.decode_first_stage(sample)
    return _linear_decode(model, sample)


def single_sample_to_image(sample: torch.Tensor, approximation: int | None = None) -> Image.Image:
    """The image of one latent (C, h, w)."""
    x = samples_to_images_tensor(sample.unsqueeze(0), approximation)[0]
    pixels = (x.float() * 0.5 + 0.5).clamp(0, 1).cpu().numpy()
    return Image.fromarray((255.0 * np.moveaxis(pixels, 0, 2)).astype(np.uint8))


def decode_first_stage(model: Any, x: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] of latents, by the VAE."""
    return samples_to_images_tensor(x.to(devices.dtype_vae), 0, model)


def sample_to_image(samples: torch.Tensor, index: int = 0, approximation: int | None = None) -> Image.Image:
    return single_sample_to_image(samples[index], approximation)


def samples_to_image_grid(samples: torch.Tensor, approximation: int | None = None) -> Image.Image:
    return images.image_grid([single_sample_to_image(sample, approximation) for sample in samples])


state.preview_of = lambda x: samples_to_image_grid(x) if opts.show_progress_grid else sample_to_image(x)


def images_tensor_to_samples(image: torch.Tensor, approximation: int | None = None, model: Any = None) -> torch.Tensor:
    """Scaled latents of images (B, 3, H, W) in [0, 1], encoded one by one to save memory."""
    model = model or shared.sd_model
    image = image.to(shared.device, dtype=devices.dtype_vae) * 2 - 1
    return torch.cat([model.get_first_stage_encoding(model.encode_first_stage(row[None])) for row in image])


def store_latent(decoded: torch.Tensor) -> None:
    """Keeps latents for the live preview."""
    state.current_latent = decoded
    every = opts.show_progress_every_n_steps
    if (
        opts.live_previews_enable
        and every > 0
        and state.sampling_step % every == 0
        and not shared.parallel_processing_allowed
    ):
        state.assign_current_image(sample_to_image(decoded))


class Sampler:
    """Base of the samplers. A new one, with a new CFG denoiser, is made for every sampling."""

    config: Any

    def __init__(self, funcname: Any) -> None:
        self.funcname = funcname
        self.func = funcname
        self.extra_params: list[str] = []
        self.sampler_noises = None
        self.stop_at: int | None = None
        self.eta: float | None = None
        self.config = None  # set by create_sampler
        self.last_latent: torch.Tensor | None = None
        self.s_min_uncond: float = 0.0
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = 0.0, 0.0, math.inf, 1.0
        self.eta_option_field, self.eta_infotext_field, self.eta_default = "eta_ancestral", "Eta", 1.0
        self.conditioning_key = getattr(shared.sd_model.model, "conditioning_key", "crossattn")
        self.p: Any = None
        self.model_wrap_cfg: Any = None
        self.model_wrap: Any = None
        self.sampler_extra_args: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def callback_state(self, d: dict[str, Any]) -> None:
        """Called at every step: progress, and whether the job was interrupted."""
        step = d["i"]
        if self.stop_at is not None and step > self.stop_at:
            raise InterruptedException
        state.sampling_step = step
        shared.total_tqdm.update()

    def launch_sampling(self, steps: int, func: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs `func`; after an interrupt, the latents of the last step."""
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        state.sampling_steps = steps
        state.sampling_step = 0
        try:
            return func()
        except InterruptedException:
            assert self.last_latent is not None
            return self.last_latent

    def number_of_needed_noises(self, p: Any) -> int:
        return p.steps

    def initialize(self, p: Any) -> dict[str, Any]:
        """Takes over what `p` says; the keyword arguments that the sampling function wants of it."""
        self.p = p
        denoiser = self.model_wrap_cfg
        denoiser.p = p
        denoiser.mask, denoiser.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        denoiser.step = 0
        denoiser.image_cfg_scale = getattr(p, "image_cfg_scale", None)
        self.eta = p.eta if p.eta is not None else getattr(opts, self.eta_option_field, 0.0)
        self.s_min_uncond = getattr(p, "s_min_uncond", None) or 0.0

        parameters = inspect.signature(self.func).parameters
        kwargs: dict[str, Any] = {}
        for name, label in (
            ("s_churn", "Sigma churn"),
            ("s_tmin", "Sigma tmin"),
            ("s_tmax", "Sigma tmax"),
            ("s_noise", "Sigma noise"),
        ):
            if name not in self.extra_params or name not in parameters:
                continue
            value, usual = getattr(p, name), getattr(self, name)
            value = usual if value is None or (name == "s_tmax" and not value) else value
            kwargs[name] = value
            if value != usual:
                p.extra_generation_params[label] = value
        if "eta" in parameters:
            if self.eta != self.eta_default:
                p.extra_generation_params[self.eta_infotext_field] = self.eta
            kwargs["eta"] = self.eta
        if "noise" in parameters:
            kwargs["noise"] = lambda sigma, sigma_next: p.rng.next()
        return kwargs

    def extra_args(self, p: Any, cond: Any, uncond: Any, image_cond: Any) -> dict[str, Any]:
        """The arguments of the CFG denoiser."""
        scale = p.cfg_scale
        if p.is_hr_pass and getattr(p, "hr_cfg", None):
            scale = p.hr_cfg
        return {
            "cond": cond,
            "image_cond": image_cond,
            "uncond": uncond,
            "cond_scale": scale,
            "s_min_uncond": self.s_min_uncond,
        }

    def from_noise(self, p: Any, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What sampling begins with, made of unit noise, and its noise levels: sigmas, or timesteps."""
        raise NotImplementedError

    def from_image(
        self, p: Any, x: torch.Tensor, noise: torch.Tensor, steps: int, t_enc: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
        """The latents `x` with noise for the last `t_enc + 1` of `steps` steps, these steps' noise levels, and the
        factor for extra noise."""
        raise NotImplementedError

    def sample(
        self,
        p: Any,
        x: torch.Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> torch.Tensor:
        """Latents from unit noise `x` (B, C, h, w)."""
        steps = steps or p.steps
        x, levels = self.from_noise(p, x, steps)
        return self._run(p, steps, x, levels, conditioning, unconditional_conditioning, image_conditioning)

    def sample_img2img(
        self,
        p: Any,
        x: torch.Tensor,
        noise: torch.Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> torch.Tensor:
        """Latents from the latents `x`, to which `noise` is added by the denoising strength of `p`."""
        total, t_enc = setup_img2img_steps(p, steps)
        noised, levels, factor = self.from_image(p, x, noise, total, t_enc)
        if opts.img2img_extra_noise > 0:
            p.extra_generation_params["Extra noise"] = opts.img2img_extra_noise
            params = ExtraNoiseParams(noise, x, noised)
            extra_noise_callback(params)
            noised = params.xi + params.noise * opts.img2img_extra_noise * factor
        self.model_wrap_cfg.init_latent = x
        return self._run(
            p,
            t_enc + 1,
            noised,
            levels,
            conditioning,
            unconditional_conditioning,
            image_conditioning,
            is_img2img=True,
        )

    def _run(
        self,
        p: Any,
        steps: int,
        x: torch.Tensor,
        levels: torch.Tensor,
        cond: Any,
        uncond: Any,
        image_cond: Any,
        is_img2img: bool = False,
    ) -> torch.Tensor:
        """Runs the sampler's function over its noise `levels`."""
        kwargs = self.initialize(p)
        if is_img2img and "is_img2img" in inspect.signature(self.func).parameters:
            kwargs["is_img2img"] = True
        self.last_latent = x
        self.sampler_extra_args = self.extra_args(p, cond, uncond, image_cond)
        latents = self.launch_sampling(
            steps,
            lambda: self.func(
                self.model_wrap_cfg,
                x,
                levels,
                extra_args=self.sampler_extra_args,
                callback=self.callback_state,
                **kwargs,
            ),
        )
        self.add_infotext(p)
        return latents

    def add_infotext(self, p: Any) -> None:
        if self.model_wrap_cfg.padded_cond_uncond:
            p.extra_generation_params["Pad conds"] = True
        if self.model_wrap_cfg.padded_cond_uncond_v0:
            p.extra_generation_params["Pad conds v0"] = True
