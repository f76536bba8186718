"""Samplers in alpha space, at discrete timesteps: here `sigma` of the CFG denoiser is the timestep, its result eps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from standalone.engine import names
from standalone.engine.denoiser import TimestepDenoiser, per_row
from standalone.engine.timestep_samplers import sample_ddim, sample_unipc
from standalone.host import shared
from standalone.host.sampling import base
from standalone.host.sampling.cfg_denoiser import CFGDenoiser
from standalone.host.shared import opts


class CFGDenoiserTimesteps(CFGDenoiser):
    """The CFG denoiser in alpha space."""

    def __init__(self, sampler: Any) -> None:
        super().__init__(sampler)
        self.alphas = shared.sd_model.alphas_cumprod
        self.mask_before_denoising = True

    def get_pred_x0(self, x_in: torch.Tensor, x_out: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        abar = per_row(self.alphas[sigma.long()], x_in)
        return (x_in - (1 - abar).sqrt() * x_out) / abar.sqrt()

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = TimestepDenoiser(shared.sd_model)
        return self.model_wrap


def _unipc(
    model: Any,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    is_img2img: bool = False,
) -> torch.Tensor:
    return sample_unipc(
        model,
        x,
        timesteps,
        extra_args,
        callback,
        is_img2img,
        variant=opts.uni_pc_variant,
        order=int(opts.uni_pc_order),
        lower_order_final=bool(opts.uni_pc_lower_order_final),
        skip_type=opts.uni_pc_skip_type,
    )


class CompVisSampler(base.Sampler):
    """One sampling in alpha space."""

    def __init__(self, funcname: Callable[..., torch.Tensor], sd_model: Any) -> None:
        super().__init__(funcname)
        self.eta_option_field, self.eta_infotext_field, self.eta_default = "eta_ddim", "Eta DDIM", 0.0
        self.model_wrap_cfg = CFGDenoiserTimesteps(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def initialize(self, p: Any) -> dict[str, Any]:
        if self.func is _unipc:
            for name in ("uni_pc_variant", "uni_pc_skip_type", "uni_pc_order", "uni_pc_lower_order_final"):
                info, value = opts.data_labels[name], getattr(opts, name)
                p.extra_generation_params[info.infotext] = value if value != info.default else None
        return super().initialize(p)

    def get_timesteps(self, p: Any, steps: int) -> torch.Tensor:
        """Rising timesteps, `steps` of them or more: 1, 1 + T // steps, 1 + 2 (T // steps), ... below T."""
        total = len(shared.sd_model.alphas_cumprod)
        if opts.always_discard_next_to_last_sigma:
            p.extra_generation_params["Discard penultimate sigma"] = True
            steps += 1
        return (torch.arange(0, total, max(1, total // steps)) + 1).clamp(0, total - 1)

    def from_noise(self, p: Any, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.get_timesteps(p, steps)

    def from_image(
        self, p: Any, x: torch.Tensor, noise: torch.Tensor, steps: int, t_enc: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        timesteps = self.get_timesteps(p, steps)
        # the noise of one timestep more than sampling begins with, as in the WebUI
        abar = shared.sd_model.alphas_cumprod[timesteps[t_enc]]
        return x * abar.sqrt() + noise * (1 - abar).sqrt(), timesteps[:t_enc], abar.sqrt()


samplers_timesteps: list[tuple[str, Callable[..., torch.Tensor], list[str], dict[str, Any]]] = [
    ("DDIM", sample_ddim, [*names.SAMPLERS["DDIM"]], {}),
    ("UniPC", _unipc, [*names.SAMPLERS["UniPC"]], {}),
]
samplers_data_timesteps = [
    base.SamplerData(label, functools.partial(CompVisSampler, func), aliases, options)
    for label, func, aliases, options in samplers_timesteps
]
VanillaStableDiffusionSampler = CompVisSampler
