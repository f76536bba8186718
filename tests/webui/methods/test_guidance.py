"""Guidance in the real WebUI, over the REST API."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webui.client import JSON, ApiError
from tests.webui.jobs import BASE, CASES, Runs, feedback, generate
from tests.webui.server import REPO, WebUI

TITLE = "Guidance"
MIMIC: JSON = {"method": "mimic scale", "highest_sigma": 0, "lowest_sigma": 0, "mimic_scale": 3}
PAG: JSON = {"perturbation_scale": 3}
SEG: JSON = {"perturbation_scale": 3, "perturbation": "SEG"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "guidance.py").is_file(), reason="the script is not there"),
]
NAMES = ("txt2img, Euler a", "txt2img, DDIM", "txt2img, Heun", "txt2img, UniPC", "Hires.fix", "img2img")
HIGH: dict[str, JSON] = {name: {**CASES[name], "cfg_scale": 15} for name in NAMES}
HIGH["Hires.fix, DDIM second"] = {**HIGH["Hires.fix"], "hr_sampler_name": "DDIM"}
HIGH["AND, batch of two"] = {**BASE, "cfg_scale": 15, "prompt": "a circle AND red :0.5", "batch_size": 2}
HIGH["one step"] = {**BASE, "cfg_scale": 15, "steps": 1}
CASE = pytest.mark.parametrize("case", HIGH.values(), ids=HIGH.keys())


def on(case: JSON, **settings: Any) -> JSON:
    """`case` with Guidance's named fields."""
    scripts = {**case.get("alwayson_scripts", {}), TITLE: {"args": [{"skimming_scale": 3, **settings}]}}
    return {**case, "alwayson_scripts": scripts}


@CASE
def test_off_the_image_is_that_of_no_pack(with_pack: WebUI, without_pack: WebUI, runs: Runs, case: JSON) -> None:
    plain = runs.first(without_pack, case).pixels
    runs.first(with_pack, on(case))  # a job with it must leave nothing behind
    assert generate(with_pack, case).pixels == plain
    assert generate(with_pack, on(case, enabled=False)).pixels == plain


@CASE
def test_every_image_changes_and_a_repeat_is_identical(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    off, changed = runs.first(with_pack, case), runs.first(with_pack, on(case))
    assert [image.size for image in changed.images] == [image.size for image in off.images]
    assert all(one != other for one, other in zip(off.pixels, changed.pixels))
    assert generate(with_pack, on(case)).pixels == changed.pixels
    for text in changed.infotexts:
        assert f"{TITLE} skimming scale: 3" in text
        assert f"{TITLE} error" not in text


def test_every_method_gives_an_image_of_its_own(with_pack: WebUI, runs: Runs) -> None:
    case = HIGH["txt2img, Euler a"]
    forms: list[JSON] = [
        {},
        {"rescale": 0.7},
        {"outside_scale": 1},
        PAG,
        SEG,
        *({"method": method} for method in ("APG", "CFG-Zero*", "MaHiRo", "off")),
        {"method": "APG", "apg_momentum": -0.5},
        MIMIC,
        {**MIMIC, "mimic_mode": "Linear Down"},
        {**MIMIC, "cfg_mode": "Half Cosine Down"},
        {**MIMIC, "scaling_startpoint": "MEAN"},
        {**MIMIC, "variability_measure": "STD", "separate_feature_channels": False},
    ]
    assert len({runs.first(with_pack, on(case, **form)).pixels for form in forms}) == len(forms)


def test_cfg_scale_1_is_an_ordinary_job(with_pack: WebUI, runs: Runs) -> None:
    case = CASES["CFG scale 1"]
    asked = runs.first(with_pack, on(case))
    assert asked.pixels == runs.first(with_pack, case).pixels
    assert not any(TITLE in text for text in asked.infotexts)


@CASE
@pytest.mark.parametrize("settings", [PAG, SEG, {"outside_scale": 1}], ids=["PAG", "SEG", "interval to 1"])
def test_rows_of_its_own_choice_give_a_repeatable_image(
    with_pack: WebUI, runs: Runs, case: JSON, settings: JSON
) -> None:
    made, plain = runs.first(with_pack, on(case, **settings)), runs.first(with_pack, on(case))
    assert all(one != other for one, other in zip(plain.pixels, made.pixels))
    assert generate(with_pack, on(case, **settings)).pixels == made.pixels
    assert not any(f"{TITLE} error" in text for text in made.infotexts)


@CASE
def test_rows_that_are_left_out_outside_the_interval_change_nothing(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    """A scale that is next to 1 has them run."""
    left_out, run = (runs.first(with_pack, on(case, outside_scale=scale)).images for scale in (1, 1.0005))
    for one, other in zip(left_out, run, strict=True):
        assert np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean() < 1


@pytest.mark.parametrize(("name", "settings"), [("PAG", PAG), ("SEG", SEG)], ids=["PAG", "SEG"])
def test_at_cfg_scale_1_a_perturbation_acts(with_pack: WebUI, runs: Runs, name: str, settings: JSON) -> None:
    case = CASES["CFG scale 1"]
    made = runs.first(with_pack, on(case, **settings))
    assert made.pixels != runs.first(with_pack, case).pixels
    assert all(f"{TITLE} perturbation: {name}" in text for text in made.infotexts)


def test_together_with_fabric_both_act(with_pack: WebUI, runs: Runs) -> None:
    case = HIGH["txt2img, Euler a"]
    fabric = {**case, "alwayson_scripts": {"FABRIC": {"args": [{"likes": feedback("red"), "end": 1.0}]}}}
    payloads = [case, on(case), fabric, on(fabric)]
    assert len({runs.first(with_pack, payload).pixels for payload in payloads}) == 4
    turned = on(fabric)
    turned["alwayson_scripts"] = dict(reversed(turned["alwayson_scripts"].items()))
    assert generate(with_pack, turned).pixels == runs.first(with_pack, on(fabric)).pixels


@pytest.mark.parametrize("name", ["txt2img, Euler a", "Hires.fix"])
def test_the_infotext_alone_gives_the_image_again(with_pack: WebUI, runs: Runs, name: str) -> None:
    """As pasting it into the page does: every control comes back."""
    case = HIGH[name]
    named = {"hr_sampler_name": case["sampler_name"]} if "enable_hr" in case else {}
    several = {**MIMIC, "threshold_percentile": 99.5, "cfg_mode": "Power Down", "cfg_scale_min": 5}
    for settings in ({}, several, {"method": "APG", "rescale": 0.5}):
        made = runs.first(with_pack, on(case, **settings))
        again = generate(with_pack, {"infotext": made.infotexts[0], **named})
        assert again.infotexts == made.infotexts
        assert again.pixels == made.pixels


def test_the_infotext_of_the_published_extension_is_understood(with_pack: WebUI, runs: Runs) -> None:
    case = HIGH["txt2img, Euler a"]
    schedule = {**MIMIC, "mimic_mode": "Cosine Down", "mimic_scale_min": 1}
    wanted = runs.first(with_pack, on(case, threshold_percentile=99.5, scaling_startpoint="MEAN", **schedule))
    plain = runs.first(with_pack, case).infotexts[0]
    fields = (
        "Dynamic thresholding enabled: True, Mimic scale: 3, Separate Feature Channels: True, "
        "Scaling Startpoint: MEAN, Variability Measure: AD, Interpolate Phi: 1, Threshold percentile: 99.5, "
        "Mimic mode: Cosine Down, Mimic scale minimum: 1, Version: "
    )
    assert generate(with_pack, {"infotext": plain.replace("Version: ", fields)}).pixels == wanted.pixels


@pytest.mark.parametrize("name", ["Steer Dynamic thresholding", "Dynamic thresholding"])
def test_requests_to_dynamic_thresholding_mean_what_they_meant(with_pack: WebUI, runs: Runs, name: str) -> None:
    case = HIGH["txt2img, Euler a"]
    rescaled = {"method": "off", "rescale": 0.7, "highest_sigma": 0, "lowest_sigma": 0}
    for arguments, today in (([True, 3], MIMIC), ([{"method": "CFG rescale only"}], rescaled)):
        asked = {**case, "alwayson_scripts": {name: {"args": arguments}}}
        assert generate(with_pack, asked).pixels == runs.first(with_pack, on(case, **today)).pixels


@pytest.mark.parametrize("arguments", [[{"mimic": 3}], [{"mimic_scale": 300}], [True, "much"], {}])
def test_requests_that_make_no_sense_are_refused(with_pack: WebUI, arguments: Any) -> None:
    with pytest.raises(ApiError) as caught:
        with_pack.client.generate({**BASE, "alwayson_scripts": {TITLE: {"args": arguments}}})
    assert caught.value.status == 422
    assert f"{TITLE}: " in caught.value.body
