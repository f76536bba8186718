"""The texts of photos and class pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.dreambooth.photos import Photo
from lib_methods.dreambooth.photos.captions import caption_of, read_caption, with_subject
from tests.dreambooth.pictures import asked


def photo(caption: str | None) -> Photo:
    return Photo(Path("a.png"), caption, None, 64, 64)


def test_a_photo_without_a_caption_is_the_papers_prompt() -> None:
    assert caption_of(photo(None), asked()) == "a ohwx dog"
    assert caption_of(photo("a dog in snow"), asked(captions=False)) == "a ohwx dog"


def test_class_pictures_never_have_the_identifier() -> None:
    assert caption_of(None, asked()) == "a dog"
    assert caption_of(None, asked(class_prompt="photo of a dog")) == "photo of a dog"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{subject} on a beach", "ohwx dog on a beach"),
        ("{subject} looks at {subject}", "ohwx dog looks at ohwx dog"),
        ("an OHWX dog asleep", "an OHWX dog asleep"),
        ("ohwx on the moon", "ohwx on the moon"),
        ("a dog next to another dog", "a ohwx dog next to another dog"),
        ("A Dog, sitting", "A ohwx Dog, sitting"),
        ("two dogs", "ohwx dog, two dogs"),
        ("hotdog stand", "ohwx dog, hotdog stand"),
        ("in the snow", "ohwx dog, in the snow"),
    ],
)
def test_a_caption_names_the_subject(text: str, told: str) -> None:
    assert caption_of(photo(text), asked()) == told


def test_nouns_of_two_words_are_found_as_such() -> None:
    settings = asked(class_noun="coffee mug")
    assert with_subject("coffee and a coffee  mug", settings) == "coffee and a ohwx coffee  mug"


def test_signs_in_a_noun_are_signs_and_no_pattern() -> None:
    assert with_subject("a c++ book", asked(class_noun="c++ book")) == "a ohwx c++ book"
    assert with_subject("abc", asked(class_noun="a.c")) == "ohwx a.c, abc"


@settings(deadline=None)
@given(st.text(max_size=80))
def test_every_caption_names_the_subject_and_asking_twice_changes_nothing(text: str) -> None:
    told = with_subject(text, asked())
    assert "ohwx" in told.lower()
    assert with_subject(told, asked()) == told
    assert "{subject}" not in told


@settings(deadline=None)
@given(st.text(max_size=80))
def test_without_an_identifier_the_noun_is_enough(text: str) -> None:
    told = with_subject(text, asked(identifier=""))
    assert "dog" in told.lower()
    assert "  dog" not in told or "  dog" in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_of_any_editor_are_read(encoding: str) -> None:
    assert read_caption("Käfer, 甲虫\r\n".encode(encoding)) == "Käfer, 甲虫"


def test_latin_1_is_read_too() -> None:
    assert read_caption("Käfer".encode("latin-1")) == "Käfer"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_become_one_plain_line(data: bytes) -> None:
    text = read_caption(data)
    assert text is None or text == " ".join(text.split())
    assert not any(ord(letter) < 32 or letter == "\x7f" for letter in text or "")
