"""Samplers in alpha space, at discrete timesteps: here `sigma` of the CFG denoiser is the timestep, its result eps."""

from . import lead
from standalone.host.sampling.base import ExtraNoiseParams, extra_noise_callback
from standalone.host.sampling.timestep import CFGDenoiser, CFGDenoiserTimesteps, CompVisSampler
from standalone.host.sampling.timestep import VanillaStableDiffusionSampler, opts
from standalone.host.sampling.timestep import samplers_data_timesteps, samplers_timesteps

lead(__name__, "host.sampling.timestep", "host.sampling.base")
