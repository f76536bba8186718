"""The seam between a method and a sampler. Nothing here knows a host or a method."""

from lib_methods.denoiser.call import DenoiserCall, Guidance, Guide, Hook, Order, Part, Role, Row, Unsupported
from lib_methods.denoiser.editing import Conditioning, Editing, Editor, OwnNoise, Position
from lib_methods.denoiser.picture import Needs, Picture, RowPlan, RowPlanner, input_channels, sees_picture
from lib_methods.denoiser.sampling import (
    LATENT_CHANNELS,
    NO_EDITING,
    NO_PICTURE,
    PIXELS_PER_LATENT,
    ChosenSampler,
    LoadedModel,
    Sampling,
    editing_of,
    picture_of,
)

__all__ = [
    "LATENT_CHANNELS",
    "NO_EDITING",
    "NO_PICTURE",
    "PIXELS_PER_LATENT",
    "ChosenSampler",
    "Conditioning",
    "DenoiserCall",
    "Editing",
    "Editor",
    "Guidance",
    "Guide",
    "Hook",
    "LoadedModel",
    "Needs",
    "Order",
    "OwnNoise",
    "Part",
    "Picture",
    "RowPlan",
    "Position",
    "Role",
    "Row",
    "RowPlanner",
    "Sampling",
    "Unsupported",
    "editing_of",
    "input_channels",
    "picture_of",
    "sees_picture",
]
