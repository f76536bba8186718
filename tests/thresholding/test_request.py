"""Arguments to settings, and infotexts to settings and back, those of other extensions included."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from lib_methods.checks import SettingsError
from lib_methods.thresholding.settings import CONTROLS, MIMIC, RESCALE, ThresholdSettings
from tests.shared.any_settings import any_settings

NAMES, KEYS, parse_request = CONTROLS.names, CONTROLS.keys, CONTROLS.request
ALL = any_settings(CONTROLS)


def settings_of(fields: dict[str, str]) -> ThresholdSettings | None:
    """The settings that an infotext asks for."""
    values = CONTROLS.from_infotext(fields)
    return CONTROLS.settings_from(values) if values.pop("enabled") else None


def positional(settings: ThresholdSettings) -> list[Any]:
    return [True, *(getattr(settings, name) for name in NAMES[1:])]


def test_the_first_twelve_are_those_of_the_published_extension() -> None:
    arguments = [True, 5, 99.5, "Linear Down", 2, "Power Up", 3, 2.5, False, "ZERO", "STD", 0.5]
    settings = parse_request(arguments)
    assert settings == ThresholdSettings(5, 99.5, "Linear Down", 2, "Power Up", 3, 2.5, False, "ZERO", "STD", 0.5)
    assert settings is not None and settings.method == MIMIC


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([{"mimic_scal": 5}], 'did you mean "mimic_scale"'),
        ([{"strength": 5}], "there are: cfg_mode"),
        ([True, "much"], "Mimic scale"),
        ([True, 7, 20], "Threshold percentile"),
        ([{"mimic_mode": "Linear"}], "schedule"),
        ([{"method": "mimic"}], "Method"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_with_a_sentence(arguments: Any, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_request(arguments)
    assert part in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def effect(settings: ThresholdSettings) -> Any:
    """What of the settings can be seen in a picture: defaults where a setting is not used."""
    default = ThresholdSettings()
    if settings.method == RESCALE:
        return (RESCALE, settings.rescale)
    shown = {name: getattr(settings, name) for name in NAMES[1:] if name != "rescale"}
    for which in ("mimic", "cfg"):
        if shown[f"{which}_mode"] == "Constant":
            shown[f"{which}_scale_min"] = 0.0
    if not settings.uses_schedule_value:
        shown["schedule_value"] = default.schedule_value
    return shown


@given(ALL)
def test_the_infotext_brings_everything_back_that_shows(settings: ThresholdSettings) -> None:
    texts = CONTROLS.to_infotext(settings)
    assert all(key.startswith(CONTROLS.title) for key in texts)
    back = settings_of(texts)
    assert back is not None
    assert effect(back) == effect(settings)
    assert CONTROLS.to_infotext(back) == texts


def test_unreadable_fields_fall_back_to_the_default() -> None:
    fields = {KEYS["mimic_scale"]: "seven", KEYS["cfg_mode"]: "?", KEYS["rescale"]: "1e400"}
    assert settings_of(fields) == ThresholdSettings(scaling_startpoint="MEAN")


PUBLISHED = {
    "Dynamic thresholding enabled": "True",
    "Mimic scale": "5",
    "Separate Feature Channels": "False",
    "Scaling Startpoint": "ZERO",
    "Variability Measure": "STD",
    "Interpolate Phi": "0.5",
    "Threshold percentile": "99.5",
    "Mimic mode": "Linear Down",
    "Mimic scale minimum": "2",
    "CFG mode": "Power Up",
    "CFG scale minimum": "3",
    "Scheduler value": "2.5",
}
FORGE = {
    "dynthres_enabled": "True",
    "dynthres_mimic_scale": "5",
    "dynthres_threshold_percentile": "0.995",
    "dynthres_mimic_mode": "Linear Down",
    "dynthres_mimic_scale_min": "2",
    "dynthres_cfg_mode": "Power Up",
    "dynthres_cfg_scale_min": "3",
    "dynthres_sched_val": "2.5",
    "dynthres_separate_feature_channels": "disable",
    "dynthres_scaling_startpoint": "ZERO",
    "dynthres_variability_measure": "STD",
    "dynthres_interpolate_phi": "0.5",
}
MEANT = ThresholdSettings(5, 99.5, "Linear Down", 2, "Power Up", 3, 2.5, False, "ZERO", "STD", 0.5)


@pytest.mark.parametrize("fields", [PUBLISHED, FORGE], ids=["extension", "Forge"])
def test_infotexts_of_other_extensions_are_understood(fields: dict[str, str]) -> None:
    assert settings_of(fields) == MEANT
    assert CONTROLS.from_infotext(fields, old=False)["enabled"] is False


def test_infotexts_of_the_extensions_first_versions_are_understood() -> None:
    early = {
        "Dynamic thresholding enabled": "True",
        "Mimic scale": "5",
        "Threshold percentile": "99.5",
        "CFG mode": "Power Down",
        "CFG scale minimum": "3",
        "Power scheduler value": "2.5",
    }
    schedule: dict[str, Any] = {"cfg_mode": "Power Down", "cfg_scale_min": 3, "schedule_value": 2.5}
    meant = ThresholdSettings(5, 99.5, **schedule, scaling_startpoint="MEAN")
    assert settings_of(early) == meant


def test_our_infotexts_from_before_zero_was_the_default_keep_their_mean() -> None:
    fields = {KEYS["method"]: MIMIC, KEYS["mimic_scale"]: "7"}
    assert settings_of(fields) == ThresholdSettings(7, scaling_startpoint="MEAN")
    assert settings_of({KEYS["method"]: RESCALE}) == ThresholdSettings(method=RESCALE)


def test_forge_says_that_it_is_off() -> None:
    assert settings_of({**FORGE, "dynthres_enabled": "False"}) is None


def test_every_control_is_pasted_by_its_own_key() -> None:
    foreign = True
    keys = CONTROLS.paste_keys(old=lambda: foreign)
    assert [key(PUBLISHED) for key in keys] == positional(MEANT)
    assert len({str(key) for key in keys}) == len(NAMES)
    foreign = False
    assert [key(PUBLISHED) for key in keys] == [False, *[None] * (len(NAMES) - 1)]
