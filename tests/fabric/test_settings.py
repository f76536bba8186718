"""Settings: from pages and API calls, or a sentence that names the part that is wrong; and back from an infotext."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.fabric.feedback import MAX_IMAGES, FeedbackImage, foreign_images, format_images, parse_images
from lib_methods.fabric.settings import CONTROLS, FabricSettings
from lib_methods.pictures.store import ImageStore
from tests.shared.any_settings import any_settings
from tests.shared.pictures import data_url, encoded, noisy, stored

UNKNOWN = "0" * 64
NAMES, parse_request = CONTROLS.names, CONTROLS.request


_weights = st.one_of(st.just(1.0), st.floats(0.0, 4.0))
_images = st.builds(FeedbackImage, st.text("0123456789abcdef", min_size=64, max_size=64), _weights)
_lists = st.lists(_images, max_size=4).map(tuple)


@st.composite
def fabric_settings(draw: st.DrawFn) -> FabricSettings:
    start, end = sorted((draw(st.floats(0.0, 1.0)), draw(st.floats(0.0, 1.0))))
    chosen = {"likes": _lists, "dislikes": _lists, "start": st.just(start), "end": st.just(end)}
    settings: FabricSettings = draw(any_settings(CONTROLS, **chosen))
    return settings


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@given(wanted=fabric_settings())
def test_fields_round_trip(wanted: FabricSettings) -> None:
    assert CONTROLS.settings_from(CONTROLS.values(wanted)) == wanted
    lists = {
        name: [{"image": image.image_id, "weight": image.weight} for image in getattr(wanted, name)]
        for name in ("likes", "dislikes")
    }
    assert CONTROLS.settings_from({**CONTROLS.values(wanted), **lists}) == wanted, "as older presets have them"


@given(wanted=fabric_settings())
def test_the_line_that_carries_a_list_round_trips(wanted: FabricSettings) -> None:
    assert parse_images(format_images(wanted.likes), "likes", None) == wanted.likes


def test_positional_named_and_both_mean_the_same(store: ImageStore) -> None:
    name = store.add(noisy())
    positional = [
        True,
        f"{name}:0.5",
        "",
        0.6,
        0.1,
        0.9,
        0.4,
        0.05,
        "as published",
        False,
        "half",
        "off",
        1.5,
        64.0,
        3.0,
        "one",
        "fine",
        True,
        True,
        True,
    ]
    assert len(positional) == len(NAMES)
    named = dict(zip(NAMES, positional, strict=True)) | {"likes": [{"image": name, "weight": 0.5}]}
    expected = FabricSettings(
        likes=(FeedbackImage(name, 0.5),),
        strength=0.6,
        start=0.1,
        end=0.9,
        negative_weight=0.4,
        min_strength=0.05,
        weighting="as published",
        colour_correction=False,
        detail="half",
        hires="off",
        hires_strength=1.5,
        cache_limit_mb=64,
        seed=3,
        reference_levels="one",
        layers="fine",
        adain=True,
        consistent_batch=True,
        compare=True,
    )
    before = replace(expected, reference_levels="six", layers="all", adain=False, consistent_batch=False, compare=False)
    assert parse_request(positional[:-5], store) == before
    assert parse_request(positional, store) == expected
    assert parse_request([named], store) == expected
    assert parse_request([{"strength": 0.7}, *positional[1:]], store).strength == 0.7
    assert parse_request([{"strength": 0.7}], store, overrides={"strength": 0.9}) == FabricSettings(strength=0.9)


def test_pictures_sent_along_are_kept_and_named_by_hash(store: ImageStore) -> None:
    image = noisy()
    forms: list[Any] = [data_url(image), encoded(image), store.add(image)]
    for form in forms:
        for value in (form, [form], [[form, 1]], [{"image": form}], [{"image": form, "weight": None}]):
            parsed = parse_request([{"likes": value}], store)
            assert parsed is not None
            assert parsed.likes == (FeedbackImage(store.add(image), 1.0),)


def test_a_picture_sent_along_with_a_bad_weight_is_not_kept(store: ImageStore) -> None:
    with pytest.raises(SettingsError, match="weight"):
        parse_request([{"likes": [[data_url(noisy()), -1]]}], store)
    assert stored(store) == ()


def test_a_missing_picture_is_refused_or_left_out_with_a_note(store: ImageStore) -> None:
    name = store.add(noisy())
    asked = parse_request([{"likes": [name, UNKNOWN], "dislikes": [UNKNOWN]}], store)
    with pytest.raises(SettingsError, match="not on this machine"):
        asked.without_missing(store, skip=False)
    settings, notes = asked.without_missing(store, skip=True)
    assert [image.image_id for image in settings.likes] == [name]
    assert settings.dislikes == ()
    assert len(notes) == 2
    assert "liked" in notes[0]
    assert "disliked" in notes[1]


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ({"strenght": 1}, 'did you mean "strength"'),
        ({"xyzzy": 1}, 'no field "xyzzy"'),
        ({"strength": "0.8"}, "Strength must be a number"),
        ({"strength": True}, "Strength must be a number"),
        ({"strength": -0.1}, "Strength must be"),
        ({"strength": math.nan}, "Strength must be"),
        ({"strength": math.inf}, "Strength must be"),
        ({"strength": [1]}, "Strength must be a number"),
        ({"start": 0.9, "end": 0.1}, "is after End"),
        ({"weighting": "other"}, "Weighting"),
        ({"weighting": 1}, "Weighting"),
        ({"detail": []}, "Detail"),
        ({"hires": {}}, "Hires"),
        ({"colour_correction": "on"}, "Colour correction is either on or off"),
        ({"cache_limit_mb": 1.5}, "Cache limit in MB must be a whole number"),
        ({"cache_limit_mb": -1}, "Cache limit in MB must be a whole number"),
        ({"seed": "1"}, "Noise seed must be"),
        ({"seed": 2**32}, "Noise seed must be"),
        ({"likes": 5}, '"likes" must be a list'),
        ({"likes": {"image": UNKNOWN}}, '"likes" must be a list'),
        ({"likes": [5]}, "Likes: An image must be text"),
        ({"likes": [[UNKNOWN]]}, "list of two"),
        ({"likes": [[UNKNOWN, "x"]]}, "weight"),
        ({"likes": [f"{UNKNOWN}:1.2.3"]}, "weight"),
        ({"likes": [f"{UNKNOWN}:9"]}, "weight"),
        ({"likes": [{"image": UNKNOWN, "wight": 1}]}, 'did you mean "weight"'),
        ({"likes": [{"weight": 1}]}, '"image" is missing'),
        ({"dislikes": ["../../etc/passwd"]}, "paths are not accepted"),
        ({"dislikes": ["C:\\boot.ini"]}, "paths are not accepted"),
        ({"likes": ["data:image/png;base64,AAAA", UNKNOWN]}, "Likes, image 1 of 2: "),
        ({"likes": [UNKNOWN] * (MAX_IMAGES + 1)}, "at most"),
    ],
)
def test_each_mistake_gets_its_sentence(store: ImageStore, field: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_request([field], store)
    assert sentence in str(caught.value)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=90)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@given(named=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5), rest=st.lists(json_values, max_size=14))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_settings_or_a_sentence(store: ImageStore, named: dict[str, Any], rest: list[Any]) -> None:
    for arguments in ([named, *rest], [True, *rest]):
        sentence = "."
        try:
            parse_request(arguments, store)
        except SettingsError as error:
            sentence = str(error)
        assert sentence.endswith((".", "?"))


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
def test_settings_survive_the_infotext(wanted: FabricSettings) -> None:
    fields = CONTROLS.to_infotext(wanted)
    assert all(key.startswith("FABRIC ") for key in fields)
    if wanted.active:
        # how often a job is made is no property of its image
        assert settings_of(through_a_webui(fields)) == replace(wanted, compare=False)
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
        reference_levels="every step",
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
