"""The seam between a method and a sampler."""

from lib_methods.denoiser.call import DenoiserCall, Hook, Role, Row, Sampling, Unsupported

__all__ = ["DenoiserCall", "Hook", "Role", "Row", "Sampling", "Unsupported"]
