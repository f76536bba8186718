"""Samplers in sigma space, with a schedule of sigmas that can be chosen; and that of latent consistency models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lib_methods.errors import UserError
from standalone.engine import names, samplers
from standalone.engine.denoiser import LCMDenoiser, SigmaDenoiser
from standalone.host import devices, shared
from standalone.host.sampling import base, schedulers
from standalone.host.sampling.cfg_denoiser import CFGDenoiser
from standalone.host.shared import opts

Row = tuple[str, Callable[..., torch.Tensor], list[str], dict[str, Any]]
_OPTIONS: dict[str, tuple[Callable[..., torch.Tensor], dict[str, Any]]] = {
    "DPM++ 2M": (samplers.sample_dpmpp_2m, {"scheduler": "karras"}),
    "DPM++ SDE": (samplers.sample_dpmpp_sde, {"scheduler": "karras", "second_order": True}),
    "DPM++ 2M SDE": (samplers.sample_dpmpp_2m_sde, {"scheduler": "exponential"}),
    "Euler a": (samplers.sample_euler_ancestral, {"uses_ensd": True}),
    "Euler": (samplers.sample_euler, {}),
    "Heun": (samplers.sample_heun, {"second_order": True}),
}
samplers_k_diffusion: list[Row] = [
    (label, function, [*names.SAMPLERS[label]], options) for label, (function, options) in _OPTIONS.items()
]
_CHURN = ["s_churn", "s_tmin", "s_tmax", "s_noise"]
sampler_extra_params: dict[Any, list[str]] = {
    samplers.sample_euler: _CHURN,
    samplers.sample_heun: _CHURN,
    samplers.sample_dpmpp_sde: ["s_noise"],
    samplers.sample_dpmpp_2m_sde: ["s_noise"],
}


class CFGDenoiserKDiffusion(CFGDenoiser):
    """The CFG denoiser in sigma space: the inner model returns denoised latents."""

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = SigmaDenoiser(shared.sd_model, quantize=bool(opts.enable_quantization))
        return self.model_wrap


class KDiffusionSampler(base.Sampler):
    """One sampling in sigma space."""

    def __init__(
        self, funcname: Callable[..., torch.Tensor], sd_model: Any, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(funcname)
        self.extra_params = sampler_extra_params.get(funcname, [])
        self.options = options or {}
        self.model_wrap_cfg = self.create_denoiser()
        self.model_wrap = self.model_wrap_cfg.inner_model

    def create_denoiser(self) -> CFGDenoiser:
        return CFGDenoiserKDiffusion(self)

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        """The falling sigmas of `steps` steps, `steps + 1` numbers with the zero, on the CPU. Writes the infotext."""
        params = p.extra_generation_params
        if opts.enable_quantization:
            params["Discrete sigmas"] = True
        discard = bool(self.config.options.get("discard_next_to_last_sigma", False))
        if opts.always_discard_next_to_last_sigma and not discard:
            discard = True
            params["Discard penultimate sigma"] = True
        count = steps + 1 if discard else steps

        name = (p.hr_scheduler if p.is_hr_pass else p.scheduler) or "Automatic"
        if name == "Automatic":
            name = self.config.options.get("scheduler", None)
        scheduler = schedulers.schedulers_map.get(name)
        low, high = float(self.model_wrap.sigmas[0]), float(self.model_wrap.sigmas[-1])
        if p.sampler_noise_scheduler_override:
            sigmas = p.sampler_noise_scheduler_override(count)
        elif scheduler is None or scheduler.function is None:
            sigmas = self.model_wrap.get_sigmas(count)
        else:
            if scheduler.label != "Automatic" and not p.is_hr_pass:
                params["Schedule type"] = scheduler.label
            elif scheduler.label != params.get("Schedule type"):
                params["Hires schedule type"] = scheduler.label
            kwargs: dict[str, Any] = {"sigma_min": low, "sigma_max": high}
            for key, label in (("sigma_min", "Schedule min sigma"), ("sigma_max", "Schedule max sigma")):
                value = getattr(opts, key)
                if value not in (0, kwargs[key]):
                    kwargs[key] = params[label] = value
            if not kwargs["sigma_min"] < kwargs["sigma_max"]:
                raise UserError(
                    "In the settings, sigma min must be below sigma max. Set both to 0 to use the model's range."
                )
            if scheduler.default_rho != -1 and opts.rho not in (0, scheduler.default_rho):
                kwargs["rho"] = params["Schedule rho"] = opts.rho
            if scheduler.need_inner_model:
                kwargs["inner_model"] = self.model_wrap
            sigmas = scheduler.function(n=count, **kwargs, device=devices.cpu)
            if not bool((sigmas[:-1] > 0).all()):  # a small rho is rounded away
                raise UserError(
                    "With these settings of sigma min, sigma max and rho the noise ends before the last step. "
                    "Set them to 0 to use the schedule's defaults."
                )
        sigmas = sigmas.cpu()
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    def from_noise(self, p: Any, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        sigmas = self.get_sigmas(p, steps)
        if opts.sgm_noise_multiplier:
            p.extra_generation_params["SGM noise multiplier"] = True
            return x * torch.sqrt(1.0 + sigmas[0] ** 2.0), sigmas
        return x * sigmas[0], sigmas

    def from_image(
        self, p: Any, x: torch.Tensor, noise: torch.Tensor, steps: int, t_enc: int
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        sigmas = self.get_sigmas(p, steps)
        # some schedules make fewer sigmas than requested
        sigmas = sigmas[max(0, len(sigmas) - 2 - t_enc) :]
        return x + noise * sigmas[0], sigmas, 1.0


def sampler_table(rows: list[Row], cls: type[KDiffusionSampler]) -> list[base.SamplerData]:
    """The choices that `rows` describe."""
    return [
        base.SamplerData(label, functools.partial(cls, func), aliases, options)
        for label, func, aliases, options in rows
    ]


class CFGDenoiserLCM(CFGDenoiser):
    """The CFG denoiser of LCM."""

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = LCMDenoiser(shared.sd_model)
        return self.model_wrap


class LCMSampler(KDiffusionSampler):
    """One sampling with LCM."""

    def create_denoiser(self) -> CFGDenoiser:
        return CFGDenoiserLCM(self)


samplers_data_k_diffusion = sampler_table(samplers_k_diffusion, KDiffusionSampler)
k_diffusion_samplers_map = {x.name: x for x in samplers_data_k_diffusion}
k_diffusion_scheduler = {x.name: x.function for x in schedulers.schedulers}
samplers_lcm: list[Row] = [("LCM", samplers.sample_lcm, [*names.SAMPLERS["LCM"]], {})]
samplers_data_lcm = sampler_table(samplers_lcm, LCMSampler)
