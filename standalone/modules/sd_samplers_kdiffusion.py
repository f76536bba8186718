"""Samplers in sigma space, with a schedule of sigmas that can be chosen."""

from . import lead
from standalone.host.sampling.base import ExtraNoiseParams, extra_noise_callback
from standalone.host.sampling.sigma import CFGDenoiser, CFGDenoiserKDiffusion, KDiffusionSampler
from standalone.host.sampling.sigma import k_diffusion_samplers_map, k_diffusion_scheduler
from standalone.host.sampling.sigma import opts, sampler_extra_params, samplers_data_k_diffusion, samplers_k_diffusion

lead(__name__, "host.sampling.sigma", "host.sampling.base")
