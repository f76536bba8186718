"""The seam between a method and a sampler."""

from lib_methods.denoiser.call import DenoiserCall, Hook, Role, Row, Sampling, Unsupported
from lib_methods.denoiser.guidance import Guidance, Guide

__all__ = ["DenoiserCall", "Guidance", "Guide", "Hook", "Role", "Row", "Sampling", "Unsupported"]
