"""What a page or a request may say, and that an infotext brings it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.settings import CONTROLS, MASK_MODES, Pix2PixZeroSettings
from tests.shared.any_settings import any_settings

WORDS = {"source": "cat", "target": "dog"}
UNKNOWN = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def settings(**fields: Any) -> Pix2PixZeroSettings:
    return Pix2PixZeroSettings(**{**WORDS, **fields})


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"source": ""}, "source is empty"),
        ({"target": " | "}, "target is empty"),
        ({"target": "Cat"}, "are the same"),
        ({"target": "dog | cat "}, "are the same"),
        ({"source": "x" * 300}, "longer than"),
        ({"source": 3}, "must be text"),
        ({"strength": 9}, "Strength"),
        ({"structure": float("nan")}, "Structure"),
        ({"start": 0.6, "end": 0.5}, "is after End"),
        ({"guidance": "hard"}, "Guidance"),
        ({"layers": "none"}, "Layers"),
        ({"inversion": "magic"}, "Inversion"),
        ({"regularisation": "more"}, "Regularisation"),
        ({"words_are": "verb"}, "words are"),
        ({"mask_mode": "left"}, "Mask"),
        ({"mask_mode": "keep white"}, "no mask image"),
        ({"mask": "../../etc/passwd"}, "hash"),
        ({"save_memory": "yes"}, "on or off"),
    ],
)
def test_each_mistake_gets_its_sentence(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        settings(**fields)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([{"sorce": "cat"}], 'did you mean "source"'),
        ([{**WORDS, "mask": UNKNOWN}], "not on this machine"),
        ([{**WORDS, "mask": "no picture"}], "The mask"),
        ([{**WORDS, "mask": 7}], "mask"),
        ([{**WORDS, "enabled": 1}], "on or off"),
        ("cat", "list"),
        ([True] * 60, "controls"),
    ],
)
def test_each_bad_request_gets_its_sentence(arguments: Any, part: str, store: ImageStore) -> None:
    with pytest.raises(SettingsError, match=part):
        CONTROLS.request(arguments, store)


def test_off_is_none_and_named_fields_switch_it_on(store: ImageStore) -> None:
    assert CONTROLS.request([], store) is None
    assert CONTROLS.request([False, "cat", "dog"], store) is None
    assert CONTROLS.request([{**WORDS, "enabled": False}], store) is None
    assert CONTROLS.request([WORDS], store) == settings()
    assert CONTROLS.request([True, "cat", "dog"], store) == settings()
    assert CONTROLS.request([WORDS], store, overrides={"strength": 2.0}) == settings(strength=2.0)


def test_several_targets_take_turns() -> None:
    assert settings(target=" dog |fox| ").targets == ("dog", "fox")


def test_directions_stand_in_place_of_words() -> None:
    assert Pix2PixZeroSettings(directions=" cat to dog: 1 ").directions == "cat to dog: 1"


@given(steps=st.integers(1, 150), first=st.floats(0, 1), second=st.floats(0, 1))
def test_the_guided_steps_lie_among_the_steps(steps: int, first: float, second: float) -> None:
    start, end = sorted((first, second))
    begin, stop = settings(start=start, end=end).guided_steps(steps)
    assert 0 <= begin <= stop <= steps


def test_the_line_says_what_will_happen() -> None:
    line = settings(target="dog | fox", start=0.1, end=0.5, mask_mode="by word").describe(True, 20)
    for part in ("cat to dog | fox", "tab's image", "structure 0.3", "steps 3-10 of 20", 'only where "cat" is'):
        assert part in line
    assert "no structure guidance" in settings(structure=0).describe(False)


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30).map(str.strip)


@st.composite
def any_edit(draw: st.DrawFn) -> Pix2PixZeroSettings:
    start, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    mode = draw(st.sampled_from(MASK_MODES))
    chosen = {
        "source": texts.filter(bool).map(lambda text: text.replace("|", " ") + " a"),
        "target": texts.filter(lambda text: bool(text.strip("| "))).map(lambda text: text + " b"),
        "caption": texts,
        "start": st.just(start),
        "end": st.just(end),
        "direction_from": st.just("sentences"),
        "mask_mode": st.just(mode),
        "mask": st.just("f" * 64 if "white" in mode else ""),
    }
    made: Pix2PixZeroSettings = draw(any_settings(CONTROLS, **chosen))
    return made


@given(wanted=any_edit())
def test_an_infotext_restores_every_control(wanted: Pix2PixZeroSettings) -> None:
    restored = CONTROLS.from_infotext(CONTROLS.to_infotext(wanted))
    assert restored == {"enabled": True, **CONTROLS.values(wanted)}
    assert list(restored) == list(CONTROLS.names)


def test_an_infotext_without_it_switches_it_off_and_touches_nothing_else() -> None:
    restored = CONTROLS.from_infotext({"Steps": "20"})
    assert restored.pop("enabled") is False
    assert set(restored.values()) == {None}


@pytest.mark.parametrize("rubbish", ["", "NaN", "1e99", "../x", "[", "None", "True|"])
def test_rubbish_in_an_infotext_falls_back_to_the_default(rubbish: str) -> None:
    fields = {
        **CONTROLS.to_infotext(settings()),
        **{CONTROLS.keys[name]: rubbish for name in ("strength", "layers", "mask")},
    }
    restored = CONTROLS.from_infotext(fields)
    for name in ("strength", "layers", "mask"):
        assert restored[name] == CONTROLS.defaults[name]
