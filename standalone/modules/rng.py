"""Noise from seeds: one generator per image, so that an image does not depend on the batch that it is made in."""

from . import lead
from standalone.host.sampling.rng import ImageRNG, create_generator, manual_seed, randn, randn_like, randn_local
from standalone.host.sampling.rng import randn_without_seed, slerp

lead(__name__, "host.sampling.rng")
