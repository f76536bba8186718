"""Upscalers that work on pixels."""

from . import lead
from standalone.host.upscalers import LANCZOS, NEAREST, Upscaler, UpscalerData, UpscalerLanczos, UpscalerNearest
from standalone.host.upscalers import UpscalerNone

lead(__name__, "host.upscalers")
