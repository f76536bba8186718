"""Settings check themselves; arguments and infotexts become settings."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.guiders.line import describe
from lib_methods.guiders.settings import (
    APG,
    CONTROLS,
    MAHIRO,
    MIMIC,
    OFF,
    SKIMMED,
    ZERO_STAR,
    GuidanceSettings,
)
from lib_methods.webui.controls import Control
from tests.shared.any_settings import any_settings

RANGE = "colours and contrast stay in the range of CFG"
EVERYWHERE: dict[str, Any] = {"highest_sigma": 0.0, "lowest_sigma": 0.0}
MIMICKING: dict[str, Any] = {"method": MIMIC, **EVERYWHERE}

NUMBERS = [control for control in CONTROLS.controls if control.kind == "slider"]
CHOICES = [control for control in CONTROLS.controls if control.choices]


@pytest.mark.parametrize("control", NUMBERS, ids=lambda control: control.name)
@pytest.mark.parametrize("value", [-2, 1e9, float("nan"), float("inf"), "7", None, True, [7]])
def test_numbers_out_of_place_are_named(control: Control, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        GuidanceSettings(**{control.name: value})
    assert str(caught.value).startswith(control.label)
    assert f"{control.low:g}" in str(caught.value)


@pytest.mark.parametrize("control", CHOICES, ids=lambda control: control.name)
@pytest.mark.parametrize("value", ["", "constant?", None, 3, ["MEAN"]])
def test_choices_out_of_place_are_named(control: Control, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        GuidanceSettings(**{control.name: value})
    assert control.label in str(caught.value) and control.choices[0] in str(caught.value)


@pytest.mark.parametrize("value", ["True", 1, None])
def test_a_switch_is_a_switch(value: Any) -> None:
    with pytest.raises(SettingsError, match="on or off"):
        GuidanceSettings(separate_feature_channels=value)


def test_settings_cannot_be_changed_and_whole_numbers_are_numbers() -> None:
    settings = GuidanceSettings(mimic_scale=5)
    assert settings == GuidanceSettings(mimic_scale=5.0)
    assert isinstance(settings.mimic_scale, float)
    with pytest.raises(FrozenInstanceError):
        settings.mimic_scale = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changed", "active"),
    [
        ({}, True),
        (EVERYWHERE, True),
        ({**MIMICKING, "interpolate_phi": 0}, False),
        ({**MIMICKING, "interpolate_phi": 0, "cfg_mode": "Linear Down"}, True),
        ({"method": OFF, **EVERYWHERE}, False),
        ({"method": OFF, **EVERYWHERE, "rescale": 0.7}, True),
        ({"method": OFF, "highest_sigma": 0}, True),
        ({"method": APG, **EVERYWHERE}, True),
        ({"method": APG, **EVERYWHERE, "apg_eta": 1}, False),
        ({"method": APG, **EVERYWHERE, "apg_eta": 1, "apg_momentum": -0.5}, True),
        ({"method": ZERO_STAR, **EVERYWHERE}, True),
        ({"method": MAHIRO, **EVERYWHERE}, True),
    ],
)
def test_settings_know_whether_they_do_anything(changed: dict[str, Any], active: bool) -> None:
    settings = GuidanceSettings(**changed)
    assert settings.active is active
    assert settings.acts_at(7) is active
    assert not settings.acts_at(1)
    assert not settings.acts_at(0)
    assert ("nothing changes" in describe(settings, 7, 20)) is not active


def test_the_defaults_act_at_the_hosts_usual_cfg_scale() -> None:
    assert GuidanceSettings().acts_at(7)


@pytest.mark.parametrize(
    ("changed", "cfg_scale", "acts"),
    [
        ({}, 5, False),
        ({}, 5.5, True),
        ({"skimming_scale": 7, **EVERYWHERE}, 7, False),
        ({"skimming_scale": 7, "outside_scale": 4}, 5, True),
        ({**MIMICKING, "mimic_scale": 7}, 7, False),
        ({**MIMICKING, "mimic_scale": 7}, 5, False),
        ({**MIMICKING, "mimic_scale": 7}, 7.5, True),
        ({**MIMICKING, "mimic_scale": 7, "rescale": 0.1}, 5, True),
        ({**MIMICKING, "mimic_scale": 7, "mimic_mode": "Linear Down"}, 5, True),
        ({**MIMICKING, "mimic_scale": 7, "interpolate_phi": 0, "cfg_mode": "Linear Down"}, 5, True),
    ],
)
def test_a_scale_that_is_not_below_the_cfg_scale_does_nothing(
    changed: dict[str, Any], cfg_scale: float, acts: bool
) -> None:
    settings = GuidanceSettings(**changed)
    assert settings.acts_at(cfg_scale) is acts
    assert ("nothing changes" in describe(settings, cfg_scale, 20)) is not acts


@pytest.mark.parametrize(
    ("changed", "cfg_scale", "line"),
    [
        (
            {},
            20,
            "At CFG 20, values that would burn come out as at CFG 5, "
            "the CFG scale is 5 above sigma 5.42 and below sigma 0.28",
        ),
        ({}, 1, "At CFG 1 there is no guidance that could burn colours, so nothing changes."),
        (
            {},
            5,
            "At CFG 5 nothing changes, because the skimming scale (5) is not below it. "
            "Lower the skimming scale or raise the CFG scale.",
        ),
        (
            {"method": OFF, "outside_scale": 1, "lowest_sigma": 0, "rescale": 0.5},
            9,
            "At CFG 9, contrast moves 50% of the way back to that of the unguided image, "
            "the CFG scale is 1 above sigma 5.42",
        ),
        (
            {"method": OFF, "highest_sigma": 1, "lowest_sigma": 2},
            9,
            "At CFG 9, the CFG scale is 5 at every sigma (the highest is not above the lowest)",
        ),
        ({"method": APG, **EVERYWHERE}, 9, "At CFG 9, nothing of the guidance that saturates is used"),
        (
            {"method": APG, **EVERYWHERE, "apg_eta": 0.25, "apg_norm": 15, "apg_momentum": -0.5},
            9,
            "At CFG 9, only 25% of the guidance that saturates is used, its norm is at most 15, momentum -0.5",
        ),
        ({"perturbation_scale": 3}, 1, "At CFG 1, PAG 3 leads away from worse attention"),
        (
            {"method": OFF, **EVERYWHERE, "perturbation_scale": 2, "perturbation": "SEG", "rescale": 0.5},
            7,
            "At CFG 7, SEG 2 leads away from worse attention, "
            "contrast moves 50% of the way back to that of the unguided image",
        ),
        (MIMICKING, 15, f"At CFG 15, {RANGE} 5"),
        (
            {**MIMICKING, "threshold_percentile": 99.5},
            15,
            f"At CFG 15, {RANGE} 5, values beyond percentile 99.5 left out of the measure",
        ),
        (
            {**MIMICKING, "threshold_percentile": 99.5, "scaling_startpoint": "MEAN"},
            15,
            f"At CFG 15, {RANGE} 5, values beyond percentile 99.5 clipped, the mean of each channel is kept",
        ),
        (
            {**MIMICKING, "mimic_mode": "Linear Down", "mimic_scale_min": 3, "rescale": 0.7},
            15,
            f"At CFG 15, {RANGE} 5 to 3 (Linear Down), "
            "contrast moves 70% of the way back to that of the unguided image",
        ),
        (
            {**MIMICKING, "cfg_mode": "Sawtooth", "variability_measure": "STD"},
            15,
            f"At CFG 0 to 15 and back (Sawtooth), {RANGE} 5, measured by standard deviation",
        ),
        (
            {**MIMICKING, "separate_feature_channels": False, "interpolate_phi": 0.5},
            15,
            f"At CFG 15, {RANGE} 5, all channels together, 50% of the effect",
        ),
    ],
)
def test_the_line_says_what_will_happen(changed: dict[str, Any], cfg_scale: float, line: str) -> None:
    assert describe(GuidanceSettings(**changed), cfg_scale, 20) == line


@given(any_settings(CONTROLS), st.floats(1.1, 30), st.integers(1, 60), st.floats(0.01, 20))
def test_every_setting_has_a_line_and_scales_in_range(
    settings: GuidanceSettings, cfg_scale: float, steps: int, sigma: float
) -> None:
    line = describe(settings, cfg_scale, steps)
    assert "\n" not in line
    assert ("nothing changes" in line) is not settings.acts_at(cfg_scale)
    assert 1 <= settings.scale_at_sigma(cfg_scale, sigma) <= cfg_scale
    for step in range(steps):
        assert 0 <= settings.mimic_scale_at(step, steps) <= 30 + 1e-9
        assert 0 <= settings.cfg_scale_at(cfg_scale, step, steps) <= 30 + 1e-9


NAMES, KEYS, parse_request = CONTROLS.names, CONTROLS.keys, CONTROLS.request
ALL = any_settings(CONTROLS)


def settings_of(fields: dict[str, str]) -> GuidanceSettings | None:
    """The settings that an infotext asks for."""
    values = CONTROLS.from_infotext(fields)
    return CONTROLS.settings_from(values) if values.pop("enabled") else None


def positional(settings: GuidanceSettings) -> list[Any]:
    return [True, *(getattr(settings, name) for name in NAMES[1:])]


SCHEDULED: dict[str, Any] = {
    "mimic_scale": 5,
    "threshold_percentile": 99.5,
    "mimic_mode": "Linear Down",
    "mimic_scale_min": 2,
    "cfg_mode": "Power Up",
    "cfg_scale_min": 3,
    "schedule_value": 2.5,
    "separate_feature_channels": False,
    "scaling_startpoint": "ZERO",
    "variability_measure": "STD",
    "interpolate_phi": 0.5,
}
MEANT = GuidanceSettings(**MIMICKING, **SCHEDULED)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([{"mimic_scal": 5}], 'did you mean "mimic_scale"'),
        ([{"strength": 5}], "there are: apg_eta"),
        ([True, "much"], "Method"),
        ([True, SKIMMED, 99], "Skimming scale"),
        ([{"mimic_mode": "Linear"}], "schedule"),
        ([{"method": "mimic"}], "Method"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_with_a_sentence(arguments: Any, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_request(arguments)
    assert part in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def effect(settings: GuidanceSettings) -> Any:
    """What of the settings can be seen in an image."""
    return {name: getattr(settings, name) for name in NAMES[1:] if name not in settings.unused}


@given(ALL)
def test_the_infotext_brings_everything_back_that_shows(settings: GuidanceSettings) -> None:
    texts = CONTROLS.to_infotext(settings)
    assert all(key.startswith(CONTROLS.title) for key in texts)
    back = settings_of(texts)
    assert back is not None
    assert effect(back) == effect(settings)
    assert CONTROLS.to_infotext(back) == texts


def test_unreadable_fields_fall_back_to_the_default() -> None:
    fields = {KEYS["skimming_scale"]: "seven", KEYS["cfg_mode"]: "?", KEYS["rescale"]: "1e400", KEYS["method"]: "?"}
    assert settings_of(fields) == GuidanceSettings()
