"""The sampler of latent consistency models."""

from . import lead
from standalone.host.sampling.sigma import CFGDenoiserLCM, LCMSampler, samplers_data_lcm, samplers_lcm

lead(__name__, "host.sampling.sigma")
