"""What the controls do when they are used: values in, the line about what will happen out."""

from __future__ import annotations

from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.thresholding.request import parse_request
from lib_methods.webui.status import status_html


def status(enabled: bool, *values: Any) -> str:
    """The line as HTML, from the values of `request.CONTROLS`, the CFG scale and the number of sampling steps."""
    *controls, cfg_scale, steps = values
    try:
        settings = parse_request([True, *controls])
    except SettingsError as error:
        return status_html(str(error), problem=True)
    assert settings is not None  # as it is switched on above
    text = settings.describe(float(cfg_scale or 0), int(steps or 1))
    return status_html(text if enabled else f"Switched off ({text.rstrip('.')}).")
