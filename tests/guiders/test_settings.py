"""Settings check themselves; arguments and infotexts become settings, those of other extensions included."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.guiders.mimic import SCHEDULES
from lib_methods.guiders.settings import CONTROLS, MIMIC, RESCALE, ThresholdSettings
from lib_methods.webui.controls import Control
from tests.shared.any_settings import any_settings

RANGE = "colours and contrast stay in the range of CFG"


NUMBERS = [control for control in CONTROLS.controls if control.kind == "slider"]
CHOICES = [control for control in CONTROLS.controls if control.choices]


@pytest.mark.parametrize("control", NUMBERS, ids=lambda control: control.name)
@pytest.mark.parametrize("value", [-1, 1e9, float("nan"), float("inf"), "7", None, True, [7]])
def test_numbers_out_of_place_are_named(control: Control, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        ThresholdSettings(**{control.name: value})
    assert str(caught.value).startswith(control.label)
    assert f"{control.low:g}" in str(caught.value) and f"{control.high:g}" in str(caught.value)


@pytest.mark.parametrize("control", CHOICES, ids=lambda control: control.name)
@pytest.mark.parametrize("value", ["", "constant?", None, 3, ["MEAN"]])
def test_choices_out_of_place_are_named(control: Control, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        ThresholdSettings(**{control.name: value})
    assert control.label in str(caught.value) and control.choices[0] in str(caught.value)


@pytest.mark.parametrize("value", ["True", 1, None])
def test_a_switch_is_a_switch(value: Any) -> None:
    with pytest.raises(SettingsError, match="on or off"):
        ThresholdSettings(separate_feature_channels=value)


def test_settings_cannot_be_changed_and_whole_numbers_are_numbers() -> None:
    settings = ThresholdSettings(mimic_scale=5)
    assert settings == ThresholdSettings(mimic_scale=5.0)
    assert isinstance(settings.mimic_scale, float)
    with pytest.raises(FrozenInstanceError):
        settings.mimic_scale = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changed", "active"),
    [
        ({}, True),
        ({"interpolate_phi": 0}, False),
        ({"interpolate_phi": 0, "cfg_mode": "Linear Down"}, True),
        ({"method": RESCALE}, True),
        ({"method": RESCALE, "rescale": 0}, False),
    ],
)
def test_settings_know_whether_they_do_anything(changed: dict[str, Any], active: bool) -> None:
    settings = ThresholdSettings(**changed)
    assert settings.active is active
    assert settings.acts_at(7) is active
    assert not settings.acts_at(1)
    assert not settings.acts_at(0)
    assert ("nothing changes" in settings.describe(7, 20)) is not active


def test_the_defaults_act_at_the_hosts_usual_cfg_scale() -> None:
    assert ThresholdSettings().acts_at(7)


@pytest.mark.parametrize(
    ("changed", "cfg_scale", "acts"),
    [
        ({"mimic_scale": 7}, 7, False),
        ({"mimic_scale": 7}, 5, False),
        ({"mimic_scale": 7}, 7.5, True),
        ({"mimic_scale": 7, "method": RESCALE}, 5, True),
        ({"mimic_scale": 7, "mimic_mode": "Linear Down"}, 5, True),
        ({"mimic_scale": 7, "interpolate_phi": 0, "cfg_mode": "Linear Down"}, 5, True),
    ],
)
def test_a_mimic_scale_that_is_not_below_the_cfg_scale_does_nothing(
    changed: dict[str, Any], cfg_scale: float, acts: bool
) -> None:
    settings = ThresholdSettings(**changed)
    assert settings.acts_at(cfg_scale) is acts
    assert ("nothing changes" in settings.describe(cfg_scale, 20)) is not acts


@pytest.mark.parametrize(
    ("changed", "cfg_scale", "line"),
    [
        ({}, 15, f"At CFG 15, {RANGE} 5"),
        ({}, 1, "At CFG 1 there is no guidance that could burn colours, so nothing changes."),
        (
            {},
            5,
            "At CFG 5 nothing changes, because the mimic scale (5) is not below it. "
            "Lower the mimic scale or raise the CFG scale.",
        ),
        (
            {"threshold_percentile": 99.5},
            15,
            f"At CFG 15, {RANGE} 5, values beyond percentile 99.5 left out of the measure",
        ),
        (
            {"threshold_percentile": 99.5, "scaling_startpoint": "MEAN"},
            15,
            f"At CFG 15, {RANGE} 5, values beyond percentile 99.5 clipped, the mean of each channel is kept",
        ),
        ({"mimic_mode": "Linear Down", "mimic_scale_min": 3}, 15, f"At CFG 15, {RANGE} 5 to 3 (Linear Down)"),
        (
            {"cfg_mode": "Sawtooth", "variability_measure": "STD"},
            15,
            f"At CFG 0 to 15 and back (Sawtooth), {RANGE} 5, measured by standard deviation",
        ),
        (
            {"separate_feature_channels": False, "interpolate_phi": 0.5},
            15,
            f"At CFG 15, {RANGE} 5, all channels together, 50% of the effect",
        ),
        ({"method": RESCALE}, 15, "At CFG 15, contrast moves 70% of the way back to that of the unguided image"),
    ],
)
def test_the_line_says_what_will_happen(changed: dict[str, Any], cfg_scale: float, line: str) -> None:
    assert ThresholdSettings(**changed).describe(cfg_scale, 20) == line


@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(SCHEDULES),
    st.floats(0, 30),
    st.floats(0, 30),
    st.floats(1.1, 30),
    st.integers(1, 60),
)
def test_every_setting_has_a_line_and_scales_in_range(
    mimic_mode: str, cfg_mode: str, mimic: float, minimum: float, cfg_scale: float, steps: int
) -> None:
    settings = ThresholdSettings(
        mimic_scale=mimic,
        mimic_mode=mimic_mode,
        mimic_scale_min=minimum,
        cfg_mode=cfg_mode,
        cfg_scale_min=minimum,
    )
    assert "\n" not in settings.describe(cfg_scale, steps)
    for step in range(steps):
        assert 0 <= settings.mimic_scale_at(step, steps) <= 30 + 1e-9
        assert 0 <= settings.cfg_scale_at(cfg_scale, step, steps) <= 30 + 1e-9


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
    """What of the settings can be seen in an image: defaults where a setting is not used."""
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
