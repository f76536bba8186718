"""Each mistake in the settings gets its sentence; what is valid is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.settings import CONTROLS, Pix2PixZeroSettings

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
    ],
)
def test_each_bad_request_gets_its_sentence(arguments: Any, part: str, store: ImageStore) -> None:
    with pytest.raises(SettingsError, match=part):
        CONTROLS.request(arguments, store)


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
    for part in ("cat to dog | fox", "tab's image", "shape kept at 0.3", "steps 3-10 of 20", 'only where "cat" is'):
        assert part in line
    assert "shape not kept" in settings(structure=0).describe(False)
