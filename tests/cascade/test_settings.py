"""A cascade's request: prompts and seeds of each stage, and a round trip through JSON and infotext."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_methods.cascade.settings import CONTROLS, CascadeRequest, CascadeSettings, from_json, to_json
from lib_methods.checks import SettingsError


def test_later_stages_take_the_first_prompt_unless_they_have_their_own() -> None:
    plain = CascadeSettings(prompt="a cat", negative_prompt="blurry")
    assert [plain.stage(number).prompt for number in (1, 2, 3)] == ["a cat"] * 3
    assert [plain.stage(number).negative_prompt for number in (1, 2, 3)] == ["blurry"] * 3
    styled = CascadeSettings(
        prompt="a cat", stage2_prompt="an oil painting of {subject}", stage3_negative_prompt="text"
    )
    assert [styled.stage(number).prompt for number in (1, 2, 3)] == ["a cat", *["an oil painting of a cat"] * 2]
    assert [styled.stage(number).negative_prompt for number in (1, 2, 3)] == ["", "", "text"]


def test_a_stage_has_its_own_seed_or_one_that_follows_from_the_image() -> None:
    settings = CascadeSettings(prompt="a cat", seed=5, stage3_seed=9)
    assert settings.seed_of(1, 7) == 7
    assert settings.seed_of(2, 7) != 7 and settings.seed_of(2, 7) != settings.seed_of(2, 8)
    assert settings.seed_of(3, 7) == settings.seed_of(3, 8) == 9


def test_a_request_survives_json(tmp_path: Path) -> None:
    settings = CascadeSettings(prompt='a "cat", red', seed=3, thresholding="static", stage2_noise_level=100)
    image, mask = tmp_path / "a.png", tmp_path / "b.png"
    folders = tmp_path / "I", tmp_path / "II"
    request = CascadeRequest(folders, tmp_path, "one", settings, image, mask, embeddings=tmp_path / "e")
    assert from_json(to_json(request)) == request


def test_the_infotext_brings_the_settings_back() -> None:
    settings = CascadeSettings(prompt="a cat", seed=3, solver="DPM++ 2M", percentile=0.9, stage2_prompt="oil {subject}")
    values = CONTROLS.from_infotext(CONTROLS.to_infotext(settings))
    values.pop("enabled")
    assert CONTROLS.settings_from(values) == settings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 60}, "Width must be a multiple of 8"),
        ({"count": 0}, "How many candidates must be a whole number"),
        ({"solver": "Euler"}, "Solver must be one of"),
        ({"guidance": float("nan")}, "Guidance scale must be between"),
        ({"prompt": 5}, "Prompt must be text"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        CascadeSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"folders": []}, "Choose the folders"),
        ({"folders": "I"}, "list of paths"),
        ({"out": None}, "out is missing"),
        ({"name": "../x"}, "name of a folder"),
        ({"mask": "m.png"}, "mask needs an image"),
        ({"settings": {"stepz": 3}}, "steps"),
        ({"colour": "red"}, "no field"),
    ],
)
def test_wrong_requests_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        from_json({"folders": ["I"], "out": "o", **changes})
