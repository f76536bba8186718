"""Infotexts, requests and saved defaults of Dynamic thresholding, as the box was called, and of other extensions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_methods.checks import SettingsError
from lib_methods.guiders.settings import CONTROLS, MIMIC, OFF, GuidanceSettings
from tests.guiders.test_settings import (
    EVERYWHERE,
    MEANT,
    MIMICKING,
    NAMES,
    SCHEDULED,
    parse_request,
    positional,
    settings_of,
)

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
    schedule |= {"mimic_scale": 5, "threshold_percentile": 99.5, "scaling_startpoint": "MEAN"}
    meant = GuidanceSettings(**MIMICKING, **schedule)
    assert settings_of(early) == meant


RESCALED = GuidanceSettings(method=OFF, rescale=0.7, **EVERYWHERE)


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"mimic scale": "7"}, GuidanceSettings(**MIMICKING, mimic_scale=7, scaling_startpoint="MEAN")),
        (
            {"mimic scale": "7", "scaling startpoint": "ZERO", "CFG mode": "Power Up", "percentile": "99.5"},
            GuidanceSettings(**MIMICKING, mimic_scale=7, cfg_mode="Power Up", threshold_percentile=99.5),
        ),
        ({"method": "CFG rescale only"}, RESCALED),
        ({"method": "CFG rescale only", "CFG rescale": "0.35"}, replace(RESCALED, rescale=0.35)),
    ],
)
def test_infotexts_of_dynamic_thresholding_mean_what_they_meant(
    fields: dict[str, str], meant: GuidanceSettings
) -> None:
    former = {f"Dynamic thresholding {name}": text for name, text in fields.items()}
    assert settings_of(former) == meant
    keys = CONTROLS.paste_keys(old=lambda: False)
    assert [key(former) for key in keys] == positional(meant)


FORMER = CONTROLS.former
assert FORMER is not None


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ([True], GuidanceSettings(**MIMICKING)),
        ([{}], GuidanceSettings(**MIMICKING)),
        ([True, *SCHEDULED.values()], MEANT),
        ([True, *SCHEDULED.values(), MIMIC, 0.7], MEANT),
        ([{"rescale": 0.5, "mimic_scale": 7}], GuidanceSettings(**MIMICKING, mimic_scale=7)),
        ([{"method": "CFG rescale only"}], RESCALED),
        ([{"method": "CFG rescale only", "rescale": 0.35}], replace(RESCALED, rescale=0.35)),
        ([True, *SCHEDULED.values(), "CFG rescale only", 0.7], replace(RESCALED, **SCHEDULED)),
        ([], None),
        ([False, 5.0], None),
        ([{"enabled": False}], None),
    ],
)
def test_requests_to_dynamic_thresholding_mean_what_they_meant(
    arguments: list[Any], meant: GuidanceSettings | None
) -> None:
    """The first twelve values of a list are those of the published extension."""
    assert FORMER is not None
    assert parse_request(FORMER.request(arguments)) == meant


@pytest.mark.parametrize("arguments", [[{"mimic_scal": 5}], [True, "much"], [{"method": "mimic"}], [True] * 15, "x"])
def test_former_requests_that_make_no_sense_are_refused(arguments: Any) -> None:
    assert FORMER is not None
    with pytest.raises(SettingsError):
        parse_request(FORMER.request(arguments))


def test_saved_defaults_of_dynamic_thresholding_are_kept(tmp_path: Path) -> None:
    """The WebUI's ui-config.json holds every default, also those that nobody changed."""
    assert FORMER is not None
    file = tmp_path / "ui-config.json"
    saved = {"Dynamic thresholding": False, "Method": MIMIC, "Mimic scale": 5.0, "Rescale": 0.7}

    def kept(**changed: Any) -> dict[str, Any]:
        now = {**saved, **{name.replace("_", " "): value for name, value in changed.items()}}
        values = {f"customscript/dynamic_thresholding.py/txt2img/{name}/value": value for name, value in now.items()}
        file.write_text(json.dumps(values), "utf-8")
        assert FORMER.saved(CONTROLS, file, "img2img") == {}
        return FORMER.saved(CONTROLS, file, "txt2img")

    assert FORMER.saved(CONTROLS, file, "txt2img") == {}
    assert kept() == {}  # nobody chose them, so today's count
    mine = kept(Mimic_scale=7, Dynamic_thresholding=True)
    assert mine.pop("enabled") is True
    assert CONTROLS.settings_from(mine) == GuidanceSettings(**MIMICKING, mimic_scale=7)
    mine = kept(Method="CFG rescale only", Rescale=0.35)
    assert mine.pop("enabled") is False
    assert CONTROLS.settings_from(mine) == replace(RESCALED, rescale=0.35)
    assert kept(Mimic_scale="much", Threshold_percentile=99.0)["threshold_percentile"] == 99
    assert "mimic_scale" not in kept(Mimic_scale="much", Threshold_percentile=99.0)
    for broken in ("{", "[1]", "7"):
        file.write_text(broken, "utf-8")
        assert FORMER.saved(CONTROLS, file, "txt2img") == {}


def test_forge_says_that_it_is_off() -> None:
    assert settings_of({**FORGE, "dynthres_enabled": "False"}) is None


def test_every_control_is_pasted_by_its_own_key() -> None:
    foreign = True
    keys = CONTROLS.paste_keys(old=lambda: foreign)
    assert [key(PUBLISHED) for key in keys] == positional(MEANT)
    assert len({str(key) for key in keys}) == len(NAMES)
    foreign = False
    assert [key(PUBLISHED) for key in keys] == [False, *[None] * (len(NAMES) - 1)]
