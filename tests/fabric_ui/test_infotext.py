"""An infotext restores every control; infotexts of the first published extension are understood; rubbish harms
nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.fabric.feedback import FeedbackImage, foreign_images
from lib_methods.fabric.settings import CONTROLS, FabricSettings
from tests.fabric_ui.strategies import fabric_settings

NAME = "0123456789abcdef" * 4
# How WebUIs write and read one field of an infotext (format, not code): quoted as JSON where it holds , : or a line
# break.
_FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def settings_of(fields: dict[str, Any]) -> FabricSettings | None:
    """The settings that an infotext asks for."""
    values = CONTROLS.from_infotext(fields)
    return CONTROLS.settings_from(values) if values.pop("enabled") else None


def through_a_webui(fields: dict[str, str]) -> dict[str, str]:
    line = ", ".join(f"{key}: {json.dumps(text) if set(text) & set(',:') else text}" for key, text in fields.items())
    return {key: json.loads(text) if text.startswith('"') else text for key, text in _FIELD.findall(line)}


@given(wanted=fabric_settings())
@settings(max_examples=200)
def test_settings_survive_the_infotext(wanted: FabricSettings) -> None:
    fields = CONTROLS.to_infotext(wanted)
    assert all(key.startswith("FABRIC ") for key in fields)
    if wanted.active:
        assert settings_of(through_a_webui(fields)) == wanted
    else:
        assert fields == {}
        assert settings_of(fields) is None


def test_infotexts_of_the_first_extension_mean_the_published_weighting() -> None:
    fields = {
        "fabric_start": "0.1",
        "fabric_end": "0.7",
        "fabric_min_weight": "0.05",
        "fabric_max_weight": "0.9",
        "fabric_neg_scale": "0.25",
        "fabric_pos_images": '["0123456789abcdef.png", "fedcba9876543210.png"]',
        "fabric_neg_images": "[]",
        "fabric_feedback_during_high_res_fix": "True",
        "fabric_tome_enabled": "False",
    }
    assert settings_of(fields) == FabricSettings(
        strength=0.9,
        min_strength=0.05,
        start=0.1,
        end=0.7,
        negative_weight=0.25,
        weighting="as published",
        colour_correction=False,
        hires="re-encode",
    )
    assert foreign_images(fields) == 2
    assert CONTROLS.from_infotext({**fields, "fabric_feedback_during_high_res_fix": "False"})["hires"] == "off"


def test_one_unreadable_field_falls_back_to_its_default_and_spares_the_others() -> None:
    good = CONTROLS.to_infotext(
        FabricSettings(likes=(FeedbackImage(NAME, 2.0),), strength=0.3, start=0.5, detail="half")
    )
    for key in good:
        values = CONTROLS.from_infotext({**good, key: "../../etc/passwd"})
        expected = CONTROLS.from_infotext({name: text for name, text in good.items() if name != key})
        assert values == expected


def test_fields_that_contradict_each_other_get_a_sentence() -> None:
    with pytest.raises(SettingsError, match="is after End"):
        settings_of({"FABRIC start": "0.9", "FABRIC end": "0.1"})


@given(
    fields=st.dictionaries(
        st.sampled_from([*CONTROLS.keys.values(), "fabric_start", "fabric_max_weight", "fabric_pos_images", "Steps"]),
        st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.none()),
        max_size=6,
    )
)
@settings(max_examples=300)
def test_rubbish_in_an_infotext_never_raises_and_never_names_a_file(fields: dict[str, Any]) -> None:
    values = CONTROLS.from_infotext(fields)
    assert set(values) == set(CONTROLS.names)
    assert foreign_images(fields) >= 0
    for name in ("likes", "dislikes"):
        assert values[name] is None or re.fullmatch(r"([0-9a-f]{16,64}(:\S+)?( |$))*", values[name])
    try:
        settings_of(fields)
    except SettingsError:
        assert values["start"] > values["end"]


def test_nothing_is_written_when_nothing_changes() -> None:
    like = (FeedbackImage(NAME),)
    assert CONTROLS.to_infotext(FabricSettings()) == {}
    assert CONTROLS.to_infotext(FabricSettings(likes=like, strength=0.0)) == {}
    assert CONTROLS.to_infotext(replace(FabricSettings(dislikes=like), negative_weight=0.0)) == {}
