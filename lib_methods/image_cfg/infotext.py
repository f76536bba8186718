"""Image conditioning's part of the infotext: settings to fields and back.

Keys carry the method's name ("InstructPix2Pix image scale"). Pictures are named by hash; the pictures themselves stay
in the image store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.image_cfg.request import CONTROLS, DEFAULTS, TITLE, control_values, settings_from_fields
from lib_methods.image_cfg.settings import ImageCfgSettings
from lib_methods.ui import paste
from lib_methods.ui.arguments import format_number
from lib_methods.ui.paste import PasteKey

KEYS = {name: f"{TITLE} {name.replace('_', ' ').replace('hires', 'Hires')}" for name in CONTROLS if name != "enabled"}
ERROR_KEY = f"{TITLE} error"
ENABLED_KEY = TITLE
"""Not written; the name under which the switch is sent from tab to tab. Pasting derives it from the other keys."""

_ALWAYS = "image_scale"
_TEXTS = ("image", "fit", "image_schedule", "text_schedule", "hires_source", "latents", "mask")
_SWITCHES = {"True": True, "False": False}


def to_infotext(settings: ImageCfgSettings) -> dict[str, str]:
    """Fields for an infotext: the image scale, and what differs from the defaults."""
    usual = control_values(DEFAULTS)
    return {
        KEYS[name]: str(value) if isinstance(value, (str, bool)) else format_number(value)
        for name, value in control_values(settings).items()
        if name == _ALWAYS or value != usual[name]
    }


def from_infotext(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every control for a pasted infotext; None leaves the control as it is.

    An infotext without the method switches it off and touches nothing else. A field that cannot be read falls back to
    the default.
    """
    if not any(key in fields for key in KEYS.values()):
        return {"enabled": False, **dict.fromkeys(KEYS)}
    values: dict[str, Any] = {"enabled": True, **control_values(DEFAULTS)}
    for name, key in KEYS.items():
        if key not in fields:
            continue
        text = str(fields[key])
        try:
            value: Any = text if name in _TEXTS else _SWITCHES[text] if name == "tab_mask" else float(text)
            # one by one; start and end together are checked where they are used
            settings_from_fields({name: value, "end": 1.0} if name == "start" else {name: value})
        except (SettingsError, ValueError, KeyError):
            continue  # as documented: the default
        values[name] = value
    return values


def paste_keys() -> tuple[PasteKey, ...]:
    """One key per control, in the order of `request.CONTROLS`."""
    return paste.paste_keys(CONTROLS, KEYS, ENABLED_KEY, from_infotext)
