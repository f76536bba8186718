"""The edit in the infotext: settings to fields and back.

Keys carry the method's name ("pix2pix-zero source"). A mask is named by hash; the picture itself stays in the image
store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.pictures.named import short_names, whole_names
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.request import CONTROLS, TITLE, control_values, settings_from_fields
from lib_methods.pix2pix_zero.settings import FIELDS, Pix2PixZeroSettings
from lib_methods.webui import paste
from lib_methods.webui.paste import PasteKey

KEYS = {name: f"{TITLE} {name.replace('_', ' ')}" for name in FIELDS}
PSNR_KEY = f"{TITLE} reconstruction PSNR"
NOTE_KEY = f"{TITLE} note"
ERROR_KEY = f"{TITLE} error"
ENABLED_KEY = TITLE
"""Not written; the name under which the switch is sent from tab to tab. Pasting derives it from the other keys."""

DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in fields(Pix2PixZeroSettings) if field.default is not MISSING
}
# an infotext that is pasted must not overwrite what is kept
_WRITTEN = {name: key for name, key in KEYS.items() if name != "save_as"}
_SWITCHES = {"True": True, "False": False}
_WORDS = {"source": "any source", "target": "any target"}  # so that any other field can be checked by itself
_MASK = "0" * 64


def to_infotext(settings: Pix2PixZeroSettings, store: ImageStore | None = None) -> dict[str, str]:
    """Fields for an infotext: what differs from the defaults, which the words or directions always do.

    store: where the mask is; its hash is shortened as far as that allows.
    """
    return paste.written(_WRITTEN, {**control_values(settings), "mask": short_names(settings.mask, store)}, DEFAULTS)


def from_infotext(given: Mapping[str, Any], store: ImageStore | None = None) -> dict[str, Any]:
    """The value of every control for a pasted infotext; None leaves the control as it is.

    An infotext without the method switches it off and touches nothing else. A field that cannot be read falls back to
    the default.
    """
    texts = paste.found(_WRITTEN, given)
    if not texts:
        return {"enabled": False, **dict.fromkeys(KEYS)}
    values: dict[str, Any] = {"enabled": True, **DEFAULTS}
    for name, text in texts.items():
        try:
            value = whole_names(text, store) if name == "mask" else _value(name, text)
            settings_from_fields({**_WORDS, "mask": _MASK, "end": 1.0, name: value})
        except (SettingsError, ValueError, KeyError):
            continue  # as documented: the default
        values[name] = value
    return values


def _value(name: str, text: str) -> Any:
    default = DEFAULTS[name]
    if isinstance(default, bool):
        return _SWITCHES[text]
    return text.strip() if isinstance(default, str) else float(text)


def paste_keys(store: ImageStore | None = None) -> tuple[PasteKey, ...]:
    """One key per control, in the order of `request.CONTROLS`. store: where the mask is looked up."""
    return paste.paste_keys(CONTROLS, KEYS, ENABLED_KEY, lambda fields: from_infotext(fields, store))
