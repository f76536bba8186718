"""The noise of NVIDIA's GPUs on any device: Philox4x32-10, and normal numbers from it as CUDA makes them."""

from standalone.host.facade import lead
from standalone.host.sampling.philox import Generator

lead(__name__, "host.sampling.philox")
