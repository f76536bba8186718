"""Settings check themselves, and say in one line what will happen."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.thresholding.formulas import SCHEDULES
from lib_methods.thresholding.settings import CHOICES, NUMBERS, RESCALE, ThresholdSettings


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, 1e9, float("nan"), float("inf"), "7", None, True, [7]])
def test_numbers_out_of_place_are_named(name: str, value: Any) -> None:
    label, low, high = NUMBERS[name]
    with pytest.raises(SettingsError) as caught:
        ThresholdSettings(**{name: value})
    assert str(caught.value).startswith(label)
    assert f"{low:g}" in str(caught.value) and f"{high:g}" in str(caught.value)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["", "constant?", None, 3, ["MEAN"]])
def test_choices_out_of_place_are_named(name: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        ThresholdSettings(**{name: value})
    assert CHOICES[name][0] in str(caught.value) and CHOICES[name][1][0] in str(caught.value)


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


@pytest.mark.parametrize(
    ("changed", "cfg_scale", "line"),
    [
        ({}, 15, "CFG 15 with the range of CFG 7"),
        ({}, 1, "CFG scale 1 has no guidance that could burn: nothing changes."),
        ({}, 5, "CFG 5 with the range of CFG 7. Mimic scale 7 is not below CFG scale 5: there is little to correct"),
        ({"threshold_percentile": 99.5}, 15, "CFG 15 with the range of CFG 7, beyond percentile 99.5 clipped"),
        ({"mimic_mode": "Linear Down", "mimic_scale_min": 3}, 15, "CFG 15 with the range of CFG 7 to 3 (Linear Down)"),
        (
            {"cfg_mode": "Sawtooth", "variability_measure": "STD", "scaling_startpoint": "ZERO"},
            15,
            "CFG 0 to 15 and back (Sawtooth) with the range of CFG 7, by standard deviation, scaled from zero",
        ),
        (
            {"separate_feature_channels": False, "interpolate_phi": 0.5},
            15,
            "CFG 15 with the range of CFG 7, all channels together, 50% of the effect",
        ),
        ({"method": RESCALE}, 15, "CFG 15, contrast brought 70% of the way back to that without guidance"),
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
