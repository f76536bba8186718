"""The seam between a method and a sampler."""

from lib_methods.denoiser.call import DenoiserCall, Hook, Role, Row, Sampling, Unsupported
from lib_methods.denoiser.guidance import Guidance, Guide
from lib_methods.denoiser.picture import PictureSampling
from lib_methods.denoiser.rows import Needs, Plan, RowPlanner

__all__ = [
    "DenoiserCall",
    "Guidance",
    "Guide",
    "Hook",
    "Needs",
    "PictureSampling",
    "Plan",
    "Role",
    "Row",
    "RowPlanner",
    "Sampling",
    "Unsupported",
]
