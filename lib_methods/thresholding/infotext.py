"""Dynamic thresholding's part of the infotext: settings to fields and back.

Our keys carry the method's name. Read, too: the fields of the sd-dynamic-thresholding extension ("Mimic scale", "CFG
mode", ...) and of the form that Forge has built in ("dynthres_mimic_scale", ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.thresholding.request import CONTROLS, TITLE
from lib_methods.thresholding.settings import CHOICES, RESCALE, ThresholdSettings
from lib_methods.webui import paste
from lib_methods.webui.arguments import format_number
from lib_methods.webui.paste import PasteKey

KEYS = {
    "method": f"{TITLE} method",
    "mimic_scale": f"{TITLE} mimic scale",
    "threshold_percentile": f"{TITLE} percentile",
    "mimic_mode": f"{TITLE} mimic mode",
    "mimic_scale_min": f"{TITLE} mimic scale minimum",
    "cfg_mode": f"{TITLE} CFG mode",
    "cfg_scale_min": f"{TITLE} CFG scale minimum",
    "schedule_value": f"{TITLE} schedule value",
    "separate_feature_channels": f"{TITLE} separate feature channels",
    "scaling_startpoint": f"{TITLE} scaling startpoint",
    "variability_measure": f"{TITLE} variability measure",
    "interpolate_phi": f"{TITLE} interpolate phi",
    "rescale": f"{TITLE} CFG rescale",
}
ERROR_KEY = f"{TITLE} error"
ENABLED_KEY = TITLE
"""Not written; the name under which the switch is sent from tab to tab. Pasting derives it from the other keys."""

PUBLISHED_SWITCH = "Dynamic thresholding enabled"
_PUBLISHED = {
    "mimic_scale": ("Mimic scale", "dynthres_mimic_scale"),
    "threshold_percentile": ("Threshold percentile", "dynthres_threshold_percentile"),
    "mimic_mode": ("Mimic mode", "dynthres_mimic_mode"),
    "mimic_scale_min": ("Mimic scale minimum", "dynthres_mimic_scale_min"),
    "cfg_mode": ("CFG mode", "dynthres_cfg_mode"),
    "cfg_scale_min": ("CFG scale minimum", "dynthres_cfg_scale_min"),
    "schedule_value": ("Scheduler value", "dynthres_sched_val"),
    "separate_feature_channels": ("Separate Feature Channels", "dynthres_separate_feature_channels"),
    "scaling_startpoint": ("Scaling Startpoint", "dynthres_scaling_startpoint"),
    "variability_measure": ("Variability Measure", "dynthres_variability_measure"),
    "interpolate_phi": ("Interpolate Phi", "dynthres_interpolate_phi"),
}
_SWITCH = {"True": True, "on": True, "enable": True, "False": False, "off": False, "disable": False}
_EARLIER = {"Scheduler value": "Power scheduler value"}  # a key's name in earlier versions

_DEFAULTS = ThresholdSettings()
_NAMES = tuple(field.name for field in fields_of(ThresholdSettings))


def to_infotext(settings: ThresholdSettings) -> dict[str, str]:
    """Fields for an infotext: the method, its main setting, and what differs from the default."""
    if settings.method == RESCALE:
        return {KEYS["method"]: RESCALE, KEYS["rescale"]: format_number(settings.rescale)}
    used = ["mimic_scale", "scaling_startpoint"]
    used += [name for name in _NAMES if getattr(settings, name) != getattr(_DEFAULTS, name)]
    unused = {"rescale"}
    unused |= set() if settings.uses_schedule_value else {"schedule_value"}
    unused |= {f"{which}_scale_min" for which in ("mimic", "cfg") if getattr(settings, f"{which}_mode") == "Constant"}
    return {KEYS[name]: _text(getattr(settings, name)) for name in KEYS if name in used and name not in unused}


def from_infotext(fields: Mapping[str, Any]) -> ThresholdSettings | None:
    """The settings that an infotext asks for, or None where it names none."""
    values = control_values(fields)
    return ThresholdSettings(**{name: values[name] for name in _NAMES}) if values["enabled"] else None


def control_values(fields: Mapping[str, Any], foreign: bool = True) -> dict[str, Any]:
    """The value of every control of `request.CONTROLS` for a pasted infotext; None leaves the control as it is.

    An infotext without dynamic thresholding switches it off and touches nothing else. A field that cannot be read falls
    back to the default. foreign: read the fields of other extensions, too.
    """
    found: Mapping[str, Any] | None = None
    if any(key in fields for key in KEYS.values()):
        found = {name: fields[key] for name, key in KEYS.items() if key in fields}
    elif foreign and PUBLISHED_SWITCH in fields:
        found = _of_extension(fields)
    elif foreign and str(fields.get("dynthres_enabled")) == "True":
        found = _of_forge(fields)
    if found is None:
        return {"enabled": False, **dict.fromkeys(_NAMES)}
    if found.get("method") != RESCALE:  # unsaid by earlier versions and by the extensions, it is what they default to
        found = {"scaling_startpoint": "MEAN", **found}
    return {"enabled": True, **{name: _read(name, found[name]) if name in found else _default(name) for name in _NAMES}}


def paste_keys(foreign: Callable[[], bool] = lambda: True) -> tuple[PasteKey, ...]:
    """One key per control, in the order of `request.CONTROLS`.

    foreign: asked at each pasting whether the fields of other extensions are meant for us.
    """
    return paste.paste_keys(CONTROLS, KEYS, ENABLED_KEY, lambda fields: control_values(fields, foreign()))


def _of_extension(fields: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: fields.get(key, fields.get(_EARLIER.get(key, key))) for name, (key, _) in _PUBLISHED.items()}
    return {name: value for name, value in named.items() if value is not None}


def _of_forge(fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: fields[key] for name, (_, key) in _PUBLISHED.items() if key in fields}
    share = found.get("threshold_percentile")
    if share is not None:  # Forge has it from 0 to 1
        try:
            found["threshold_percentile"] = float(share) * 100
        except ValueError:
            del found["threshold_percentile"]
    return found


def _default(name: str) -> Any:
    return getattr(_DEFAULTS, name)


def _read(name: str, text: Any) -> Any:
    """A field's value, or its default where it cannot be read."""
    try:
        if name in CHOICES:
            value: Any = str(text)
        elif name == "separate_feature_channels":
            value = _SWITCH[str(text)]
        else:
            value = float(text)
        return getattr(ThresholdSettings(**{name: value}), name)
    except (SettingsError, ValueError, KeyError, OverflowError):
        return _default(name)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else format_number(value)
