"""A word of the caption in place of another: what the sentence becomes, and what is said where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.pix2pix_zero.settings import CONTROLS, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.words import plural_of, swapped
from standalone.instruct.edits import scenes
from standalone.shapes.world import caption


@pytest.mark.parametrize(
    ("text", "source", "target", "wanted"),
    [
        ("a cat on a sofa", "cat", "dog", "a dog on a sofa"),
        ("a cat on a sofa", "a cat", "an owl", "an owl on a sofa"),
        ("An owl", "owl", "cat", "A cat"),
        ("a cat among cats, the cat's bowl", "cat", "fox", "a fox among foxes, the fox's bowl"),
        ("A CAT", "cat", "Dog", "A Dog"),
        ("(cat:1.2), cinematic", "cat", "dog", "(dog:1.2), cinematic"),
        ("a red ball", "red", "orange", "an orange ball"),
        ("a red ball", "red", "gold", "a gold ball"),
        ("a garden in spring", "garden", "snow", "snow in spring"),
        ("a cat asleep", "cat", "two dogs", "two dogs asleep"),
        ("an old  man's hat", "old man", "young woman", "a young woman's hat"),
        ("three men", "man", "woman", "three women"),
        ("a small city and cities", "city", "box", "a small box and boxes"),
        ("a category of cats", "cat", "dog", "a category of dogs"),
        ("猫在沙发上", "猫", "狗", "狗在沙发上"),
        ("un cafe\u0301", "café", "thé", "un thé"),
        ("a cat", "cat", r"\1 dog", r"\1 dog"),
    ],
)
def test_the_word_is_swapped_and_the_sentence_stays_english(text: str, source: str, target: str, wanted: str) -> None:
    assert swapped(text, source, target) == wanted


def test_captions_of_the_procedural_world_become_those_of_the_edited_scene() -> None:
    for number in range(300):
        task, before, after = scenes(number)
        assert swapped(caption(before), getattr(before, task), getattr(after, task)) == caption(after)


@pytest.mark.parametrize(
    ("text", "source", "target", "sentence"),
    [
        ("a catalogue of birds", "cat", "dog", '"cat" is not in the caption "a catalogue of birds"'),
        ("birds " * 40, "cat", "dog", "…"),
        ("cats", "cat", "cats", "nothing to change"),
        ("a cat", " ", "dog", "Enter what"),
        ("a cat", "cat", "x" * 101, "at most 100"),
    ],
)
def test_what_cannot_be_swapped_is_said(text: str, source: str, target: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        swapped(text, source, target)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cross", "crosses"),
        ("square", "squares"),
        ("pony", "ponies"),
        ("boy", "boys"),
        ("human", "humans"),
        ("fireman", "firemen"),
        ("sheep", "sheep"),
        ("dogs", "dogs"),
        ("old ox", "old oxen"),
        ("猫", "猫"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural_of(one) == many


@given(st.text(max_size=60), st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_swapped_or_refused_with_a_sentence(text: str, source: str, target: str) -> None:
    try:
        found = swapped(text, source, target)
    except SettingsError:
        return
    assert found != text


def settings(**fields: Any) -> Pix2PixZeroSettings:
    return Pix2PixZeroSettings(**{"source": "cat", "target": "dog", "direction_from": "caption", **fields})


def test_a_caption_without_the_word_is_refused_as_soon_as_it_is_known() -> None:
    with pytest.raises(SettingsError, match='"cat" is not in the caption'):
        settings(caption="a horse")
    with pytest.raises(SettingsError, match="Direction from must be one of: sentences, caption"):
        settings(direction_from="prompt")
    settings()  # the prompt is not known yet
    settings(caption="a horse", direction_from="sentences")
    settings(caption="a horse", directions="cat to dog")  # which needs no word
    assert "cat to dog (swapped in the caption)" in settings(caption="a cat").describe(True)


def test_sources_and_targets_take_turns_together() -> None:
    asked = settings(source="cat | horse", target="dog | zebra", direction_from="sentences")
    assert asked.pairs == (("cat", "dog"), ("horse", "zebra"))
    assert [asked.word(image) for image in range(3)] == ["cat", "horse", "cat"]
    assert settings(source="cat | horse").pairs == (("cat", "dog"), ("horse", "dog"))
    assert settings(target="dog|fox").pairs == (("cat", "dog"), ("cat", "fox"))
    assert asked.describe(True).startswith("cat | horse to dog | zebra in")
    with pytest.raises(SettingsError, match="2 sources and 3 targets"):
        settings(source="cat | horse", target="dog | zebra | fox")
    with pytest.raises(SettingsError, match="are the same"):
        settings(source="cat | horse", target="dog | Horse")
    with pytest.raises(SettingsError, match='"horse" is not in the caption'):
        settings(source="cat | horse", caption="a cat")


def test_the_infotext_brings_the_choice_back() -> None:
    given = CONTROLS.to_infotext(settings(caption="a cat"))
    assert given["pix2pix-zero direction from"] == "caption"
    assert CONTROLS.from_infotext(given)["direction_from"] == "caption"
    assert CONTROLS.from_infotext({**given, "pix2pix-zero direction from": "?"})["direction_from"] == "sentences"
    assert "pix2pix-zero direction from" not in CONTROLS.to_infotext(settings(direction_from="sentences"))
