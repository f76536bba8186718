"""From what a page or an API call sends to `ThresholdSettings`.

The controls of the page arrive as a list in the order of `CONTROLS`. An API call may send the same list, or one dict of
named fields in the first place, or both; then the named fields win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_methods.thresholding.settings import ThresholdSettings
from lib_methods.webui.arguments import request_fields

TITLE = "Dynamic thresholding"
CONTROLS = (
    "enabled",
    "mimic_scale",
    "threshold_percentile",
    "mimic_mode",
    "mimic_scale_min",
    "cfg_mode",
    "cfg_scale_min",
    "schedule_value",
    "separate_feature_channels",
    "scaling_startpoint",
    "variability_measure",
    "interpolate_phi",
    "method",
    "rescale",
)
"""The order of positional API arguments; the first twelve as in the sd-dynamic-thresholding extension."""


def parse_request(arguments: Sequence[Any], overrides: Mapping[str, Any] | None = None) -> ThresholdSettings | None:
    """Read the arguments of one job; None where dynamic thresholding is off.

    Args:
        arguments: values in the order of `CONTROLS`; a dict in the first place holds named fields. None stands for the
            default.
        overrides: fields set from elsewhere (X/Y/Z plot), "enabled" included; they win over everything.

    Raises:
        SettingsError: the sentence names the field.
    """
    named = request_fields(arguments, CONTROLS, TITLE, overrides)
    return None if named is None else ThresholdSettings(**named)
