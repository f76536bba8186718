"""Samplers in alpha space, at discrete timesteps: here `sigma` of the CFG denoiser is the timestep, its result eps."""

from . import lead
from standalone.host.sampling.timestep import CFGDenoiser, CFGDenoiserTimesteps, CompVisSampler, ExtraNoiseParams
from standalone.host.sampling.timestep import VanillaStableDiffusionSampler, extra_noise_callback, opts
from standalone.host.sampling.timestep import samplers_data_timesteps, samplers_timesteps

lead(__name__, "host.sampling.timestep")
