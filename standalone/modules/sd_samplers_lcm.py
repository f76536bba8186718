"""The sampler of latent consistency models."""

from __future__ import annotations

from typing import Any

from modules import sd_samplers_kdiffusion, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from standalone.engine import names
from standalone.engine.denoiser import LCMDenoiser
from standalone.engine.samplers import sample_lcm


class CFGDenoiserLCM(CFGDenoiser):
    """The CFG denoiser of LCM."""

    @property
    def inner_model(self) -> Any:
        if self.model_wrap is None:
            self.model_wrap = LCMDenoiser(shared.sd_model)
        return self.model_wrap


class LCMSampler(sd_samplers_kdiffusion.KDiffusionSampler):
    """One sampling with LCM."""

    def create_denoiser(self) -> CFGDenoiser:
        return CFGDenoiserLCM(self)


samplers_lcm: list[sd_samplers_kdiffusion.Row] = [("LCM", sample_lcm, [*names.SAMPLERS["LCM"]], {})]
samplers_data_lcm = sd_samplers_kdiffusion.sampler_table(samplers_lcm, LCMSampler)
