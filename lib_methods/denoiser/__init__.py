"""The seam between a method and a sampler."""

from lib_methods.denoiser.call import DenoiserCall, Hook, Part, Role, Row, Sampling, Unsupported
from lib_methods.denoiser.editing import Conditioning, Editor, EditSampling, OwnNoise, Position
from lib_methods.denoiser.guidance import Guidance, Guide
from lib_methods.denoiser.loaded import LoadedModel
from lib_methods.denoiser.picture import PictureSampling
from lib_methods.denoiser.rows import Needs, Plan, RowPlanner

__all__ = [
    "Conditioning",
    "DenoiserCall",
    "EditSampling",
    "Editor",
    "Guidance",
    "Guide",
    "Hook",
    "LoadedModel",
    "Needs",
    "OwnNoise",
    "Part",
    "PictureSampling",
    "Plan",
    "Position",
    "Role",
    "Row",
    "RowPlanner",
    "Sampling",
    "Unsupported",
]
