"""The noise of NVIDIA's GPUs on any device: Philox4x32-10, and normal numbers from it as CUDA makes them."""

from . import lead
from standalone.host.sampling.rng import Generator

lead(__name__, "host.sampling.rng")
