"""The edit in the infotext: settings to fields and back.

Keys carry the method's name ("pix2pix-zero source"). A mask is named by hash; the picture itself stays in the image
store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.pix2pix_zero.request import CONTROLS, TITLE, control_values, settings_from_fields
from lib_methods.pix2pix_zero.settings import FIELDS, Pix2PixZeroSettings
from lib_methods.ui import paste
from lib_methods.ui.arguments import format_number
from lib_methods.ui.paste import PasteKey

KEYS = {name: f"{TITLE} {name.replace('_', ' ')}" for name in FIELDS}
PSNR_KEY = f"{TITLE} reconstruction PSNR"
NOTE_KEY = f"{TITLE} note"
ERROR_KEY = f"{TITLE} error"
ENABLED_KEY = TITLE
"""Not written; the name under which the switch is sent from tab to tab. Pasting derives it from the other keys."""

DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in fields(Pix2PixZeroSettings) if field.default is not MISSING
}
_NEVER = ("save_as",)  # an infotext that is pasted must not overwrite what is kept
_ALWAYS = ("strength", "structure")
_SWITCHES = {"True": True, "False": False}
_WORDS = {"source": "any source", "target": "any target"}  # so that any other field can be checked by itself
_MASK = "0" * 64


def to_infotext(settings: Pix2PixZeroSettings) -> dict[str, str]:
    """Fields for an infotext: the words, strength and structure, and what differs from the defaults."""
    return {
        KEYS[name]: _text(value)
        for name, value in control_values(settings).items()
        if name not in _NEVER and (name in _ALWAYS or value != DEFAULTS[name])
    }


def from_infotext(given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every control for a pasted infotext; None leaves the control as it is.

    An infotext without the method switches it off and touches nothing else. A field that cannot be read falls back to
    the default.
    """
    if not any(key in given for key in KEYS.values()):
        return {"enabled": False, **dict.fromkeys(KEYS)}
    values: dict[str, Any] = {"enabled": True, **DEFAULTS}
    for name, key in KEYS.items():
        if key not in given or name in _NEVER:
            continue
        try:
            value = _value(name, str(given[key]))
            settings_from_fields({**_WORDS, "mask": _MASK, "end": 1.0, name: value})
        except (SettingsError, ValueError, KeyError):
            continue  # as documented: the default
        values[name] = value
    return values


def _text(value: Any) -> str:
    if isinstance(value, str):
        # the host quotes commas, colons and line breaks, but takes a text that begins with a quote for a quoted one
        return json.dumps(value, ensure_ascii=False) if value.startswith('"') else value
    return str(value) if isinstance(value, bool) else format_number(value)


def _value(name: str, text: str) -> Any:
    default = DEFAULTS[name]
    if isinstance(default, bool):
        return _SWITCHES[text]
    if isinstance(default, str):
        return str(json.loads(text)) if text.startswith('"\\"') else text
    return float(text)


def paste_keys() -> tuple[PasteKey, ...]:
    """One key per control, in the order of `request.CONTROLS`."""
    return paste.paste_keys(CONTROLS, KEYS, ENABLED_KEY, from_infotext)
