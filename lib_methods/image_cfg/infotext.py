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
from lib_methods.pictures.named import short_names, whole_names
from lib_methods.pictures.store import ImageStore
from lib_methods.webui import paste
from lib_methods.webui.paste import PasteKey

KEYS = {name: f"{TITLE} {name.replace('_', ' ').replace('hires', 'Hires')}" for name in CONTROLS if name != "enabled"}
ERROR_KEY = f"{TITLE} error"
ENABLED_KEY = TITLE
"""Not written; the name under which the switch is sent from tab to tab. Pasting derives it from the other keys."""

_MAIN = "image_scale"
_IMAGES = ("image", "mask")
_TEXTS = (*_IMAGES, "fit", "image_schedule", "text_schedule", "hires_source", "latents")
_SWITCHES = {"True": True, "False": False}


def to_infotext(settings: ImageCfgSettings, store: ImageStore | None = None) -> dict[str, str]:
    """Fields for an infotext: what differs from the defaults, or the image scale where nothing does.

    store: where the pictures are; their hashes are shortened as far as that allows.
    """
    values = control_values(settings)
    values |= {name: short_names(values[name], store) for name in _IMAGES}
    return paste.written(KEYS, values, control_values(DEFAULTS), main=_MAIN)


def from_infotext(fields: Mapping[str, Any], store: ImageStore | None = None) -> dict[str, Any]:
    """The value of every control for a pasted infotext; None leaves the control as it is.

    An infotext without the method switches it off and touches nothing else. A field that cannot be read falls back to
    the default.
    """
    texts = paste.found(KEYS, fields)
    if not texts:
        return {"enabled": False, **dict.fromkeys(KEYS)}
    values: dict[str, Any] = {"enabled": True, **control_values(DEFAULTS)}
    for name, text in texts.items():
        try:
            value: Any = text if name in _TEXTS else _SWITCHES[text] if name == "tab_mask" else float(text)
            value = whole_names(text, store) if name in _IMAGES else value
            # one by one; start and end together are checked where they are used
            settings_from_fields({name: value, "end": 1.0} if name == "start" else {name: value})
        except (SettingsError, ValueError, KeyError):
            continue  # as documented: the default
        values[name] = value
    return values


def paste_keys(store: ImageStore | None = None) -> tuple[PasteKey, ...]:
    """One key per control, in the order of `request.CONTROLS`. store: where the pictures are looked up."""
    return paste.paste_keys(CONTROLS, KEYS, ENABLED_KEY, lambda fields: from_infotext(fields, store))
