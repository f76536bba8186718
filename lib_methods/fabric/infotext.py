"""FABRIC's part of the infotext: settings to fields and back, also from the fields of the first published extension.

Keys carry the method's name ("FABRIC strength"). Pictures are named by hash; the pictures themselves stay in the image
store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lib_methods.pictures.named import short_names, whole_names
from lib_methods.pictures.store import ImageStore
from lib_methods.webui import paste
from lib_methods.webui.paste import PasteKey

from .request import CONTROLS, format_images, parse_images, settings_from_fields
from .settings import DETAILS, HIRES_MODES, WEIGHTINGS, FabricSettings, SettingsError

KEYS = {
    "likes": "FABRIC likes",
    "dislikes": "FABRIC dislikes",
    "strength": "FABRIC strength",
    "start": "FABRIC start",
    "end": "FABRIC end",
    "negative_weight": "FABRIC negative weight",
    "min_strength": "FABRIC min strength",
    "weighting": "FABRIC weighting",
    "colour_correction": "FABRIC colour correction",
    "detail": "FABRIC detail",
    "hires": "FABRIC Hires",
    "hires_strength": "FABRIC Hires strength",
    "cache_limit_mb": "FABRIC cache limit",
    "seed": "FABRIC seed",
}
ERROR_KEY = "FABRIC error"
ENABLED_KEY = "FABRIC"
"""Not written; the name under which the switch is sent from tab to tab. Pasting derives it from the other keys."""

_LISTS = ("likes", "dislikes")
_USUAL = {**{name: getattr(FabricSettings(), name) for name in KEYS}, "likes": "", "dislikes": ""}
_PUBLISHED_NUMBERS = {
    "strength": "fabric_max_weight",
    "min_strength": "fabric_min_weight",
    "start": "fabric_start",
    "end": "fabric_end",
    "negative_weight": "fabric_neg_scale",
}
_PUBLISHED_LISTS = ("fabric_pos_images", "fabric_neg_images")


def to_infotext(settings: FabricSettings, store: ImageStore | None = None) -> dict[str, str]:
    """Fields for an infotext: the pictures, and what differs from the defaults; nothing for settings that change
    nothing.

    store: where the pictures are; their hashes are shortened as far as that allows.
    """
    if not settings.active:
        return {}
    values = {name: getattr(settings, name) for name in KEYS}
    values |= {name: short_names(format_images(values[name]), store) for name in _LISTS}
    return paste.written(KEYS, values, _USUAL, switch=("off", "on"))


def from_infotext(fields: Mapping[str, Any]) -> FabricSettings | None:
    """The settings that an infotext asks for, or None where it names none.

    Raises:
        SettingsError: the fields are there, but say something impossible.
    """
    values = control_values(fields)
    if not values.pop("enabled"):
        return None
    return settings_from_fields({name: value for name, value in values.items() if value is not None})


def control_values(fields: Mapping[str, Any], store: ImageStore | None = None, foreign: bool = True) -> dict[str, Any]:
    """The value of every control of `request.CONTROLS` for a pasted infotext; None leaves the control as it is.

    An infotext without FABRIC switches it off and touches nothing else. A field that cannot be read falls back to the
    default. foreign: whether the fields of the first published extension are meant for us.
    """
    texts = paste.found(KEYS, fields)
    if texts:
        return {"enabled": True, **_our_values(texts, store)}
    if foreign and any(key in fields for key in _PUBLISHED_NUMBERS.values()):
        return {"enabled": True, **_published_values(fields)}
    return {"enabled": False, **dict.fromkeys(KEYS)}


def foreign_pictures(fields: Mapping[str, Any]) -> int:
    """How many pictures an infotext of the first extension names. Its files are its own: they cannot be restored
    here."""
    return sum(len(_json_list(fields.get(key))) for key in _PUBLISHED_LISTS)


def paste_keys(store: ImageStore | None = None, foreign: Callable[[], bool] = lambda: True) -> tuple[PasteKey, ...]:
    """One key per control, in the order of `request.CONTROLS`.

    store: where the pictures are looked up. foreign: asked at each pasting whether the fields of the first published
    extension are meant for us.
    """
    return paste.paste_keys(CONTROLS, KEYS, ENABLED_KEY, lambda fields: control_values(fields, store, foreign()))


def _our_values(texts: Mapping[str, str], store: ImageStore | None) -> dict[str, Any]:
    # the cache limit belongs to the machine, not to the picture: it stays where the infotext does not name it
    values: dict[str, Any] = {**_USUAL, "cache_limit_mb": None}
    for name, text in texts.items():
        try:
            value = _READERS[name](text)
            if name in _LISTS:
                value = whole_names(value, store)
            else:
                # start and end are checked one by one here; together they are checked where they are used
                settings_from_fields({"end": 1.0, name: value} if name == "start" else {name: value})
            values[name] = value
        except (SettingsError, ValueError, OverflowError):
            continue  # as documented: the default
    return values


def _published_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        **_USUAL,
        "cache_limit_mb": None,
        "weighting": "as published",
        "colour_correction": False,
        "detail": "full",
    }
    for name, key in _PUBLISHED_NUMBERS.items():
        try:
            value = float(str(fields[key]))
            settings_from_fields({"end": 1.0, name: value} if name == "start" else {name: value})
            values[name] = value
        except (KeyError, ValueError):  # SettingsError is a ValueError
            continue
    in_hires = str(fields.get("fabric_feedback_during_high_res_fix", "False")) == "True"
    values["hires"] = "re-encode" if in_hires else "off"
    return values


def _json_list(text: object) -> list[Any]:
    try:
        value = json.loads(str(text).replace("'", '"'))
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def _images(text: str, name: str) -> str:
    return format_images(parse_images(text, name, None))


def _choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return read


def _switch(text: str) -> bool:
    return _choice(("on", "off"))(text) == "on"


_READERS: dict[str, Callable[[str], Any]] = {
    "likes": lambda text: _images(text, "likes"),
    "dislikes": lambda text: _images(text, "dislikes"),
    "weighting": _choice(WEIGHTINGS),
    "detail": _choice(DETAILS),
    "hires": _choice(HIRES_MODES),
    "colour_correction": _switch,
    "cache_limit_mb": lambda text: int(float(text)),
    "seed": lambda text: int(float(text)),
    **dict.fromkeys(("strength", "start", "end", "negative_weight", "min_strength", "hires_strength"), float),
}
