"""Upscalers that work on pixels."""

from standalone.host.facade import lead
from standalone.host.upscalers import (
    LANCZOS,
    NEAREST,
    Upscaler,
    UpscalerData,
    UpscalerLanczos,
    UpscalerNearest,
    UpscalerNone,
)

lead(__name__, "host.upscalers")
