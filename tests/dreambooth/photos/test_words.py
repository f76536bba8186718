"""Captions, class images' texts, and the rare word that names the subject."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.dreambooth.model.identifier import (
    DENIED,
    RAREST_FROM,
    check_class_noun,
    check_identifier,
    pick_identifier,
)
from lib_methods.dreambooth.photos.companions import caption_text
from lib_methods.dreambooth.photos.image import Photo
from lib_methods.dreambooth.photos.subjects import caption_of, with_subject
from lib_methods.errors import UserError
from standalone.engine.text import VOCABULARY_DIR, clip_tokenizer
from tests.dreambooth.models import asked


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


@given(st.text(max_size=80))
def test_every_caption_names_the_subject_and_asking_twice_changes_nothing(text: str) -> None:
    told = with_subject(text, asked())
    assert "ohwx" in told.lower()
    assert with_subject(told, asked()) == told
    assert "{subject}" not in told


@given(st.text(max_size=80))
def test_without_an_identifier_the_noun_is_enough(text: str) -> None:
    told = with_subject(text, asked(identifier=""))
    assert "dog" in told.lower()
    assert "  dog" not in told or "  dog" in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_of_any_editor_are_read(encoding: str) -> None:
    assert caption_text("Käfer, 甲虫\r\n".encode(encoding)) == "Käfer, 甲虫"


def test_latin_1_is_read_too() -> None:
    assert caption_text("Käfer".encode("latin-1")) == "Käfer"


@given(st.binary(max_size=200))
def test_any_bytes_become_one_plain_line(data: bytes) -> None:
    text = caption_text(data)
    assert text is None or text == " ".join(text.split())
    assert not any(ord(letter) < 32 or letter == "\x7f" for letter in text or "")


@lru_cache(maxsize=1)
def words() -> dict[str, int]:
    return json.loads((VOCABULARY_DIR / "vocab.json").read_text("utf-8"))


def tokens(text: str) -> list[int]:
    return clip_tokenizer()(text, add_special_tokens=False)["input_ids"]


def pick(seed: int = 0, count: int = 1, avoid: tuple[str, ...] = ()) -> list[str]:
    return pick_identifier(words(), tokens, seed, count, avoid)


def test_every_pick_is_one_rare_token_that_ends_a_word() -> None:
    found = pick(count=30)
    assert len(set(found)) == 30
    for word in found:
        assert tokens(word) == [words()[f"{word}</w>"]]
        assert words()[f"{word}</w>"] >= RAREST_FROM
        assert 2 <= len(word) <= 4 and word.isalpha() and word.islower()
        assert word not in DENIED


def test_a_pick_stays_one_token_inside_a_prompt() -> None:
    word = pick()[0]
    assert tokens(f"a {word} dog")[1:2] == [words()[f"{word}</w>"]]
    assert len(tokens(f"a {word} dog")) == 3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_the_seed_decides_and_more_words_only_add_to_the_first(seed: int, count: int) -> None:
    assert pick(seed, count) == pick(seed, count)
    assert pick(seed, count + 1)[:count] == pick(seed, count)


def test_seeds_differ() -> None:
    assert len({pick(seed)[0] for seed in range(20)}) > 5


def test_what_is_to_be_avoided_never_comes_in_either_case() -> None:
    first = pick(count=10)
    assert not set(pick(count=10, avoid=(" ".join(first).upper(),))) & set(first)


def test_words_known_to_mean_something_never_come() -> None:
    everything = pick(count=len(all_picks()))
    for word in ("sks", "nfl", "nasa", "usa", "dog", "aol", "jap", "fck", "thx", "kke", "ohl", "sql", "tbd", "emma"):
        assert word not in everything


@lru_cache(maxsize=1)
def all_picks() -> list[str]:
    count = 1
    while True:
        try:
            found = pick(count=count)
        except UserError:
            return found
        count += 1


def test_more_than_there_are_is_an_error_that_says_what_to_do() -> None:
    assert len(all_picks()) >= 35
    with pytest.raises(UserError, match="Choose an identifier yourself"):
        pick(count=5000)


def test_a_tokenizer_that_splits_what_its_vocabulary_lists_is_not_trusted() -> None:
    split: Callable[[str], list[int]] = lambda text: [1, 2]  # noqa: E731
    with pytest.raises(UserError):
        pick_identifier({"vak</w>": 45_000}, split, 0)


def test_pieces_of_words_and_other_signs_are_not_words() -> None:
    vocabulary = {"qvk": 45_000, "q7k</w>": 45_001, "äqk</w>": 45_002, "qvx</w>": 100, "qxv</w>": 45_003}
    assert pick_identifier(vocabulary, lambda text: [vocabulary[f"{text}</w>"]], 0) == ["qxv"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("fluffy", "common word"),
        ("Table", "common word"),
        ("zwx", "2 tokens"),
        ("sks", "already means something"),
        ("hymn", "already means something"),
        ("my dog", "more than one word"),
        ("dog", "class noun itself"),
        ("DOG", "class noun itself"),
    ],
)
def test_doubtful_words_are_warned_of(word: str, says: str) -> None:
    assert any(says in note for note in check_identifier(word, words(), tokens, "dog"))


def test_a_part_of_the_class_noun_is_warned_of() -> None:
    assert any("repeats" in note for note in check_identifier("coffee", words(), tokens, "coffee mug"))


def test_the_example_in_a_warning_is_a_good_word() -> None:
    note = next(note for note in check_identifier("zwx", words(), tokens) if "for example" in note)
    assert check_identifier(note.rsplit('"', 2)[1], words(), tokens) == []


def test_every_pick_and_no_word_at_all_are_fine() -> None:
    for word in [*pick(count=30), "ohwx", "phol", "", "  "]:
        assert check_identifier(word, words(), tokens, "dog") == []


@given(word=st.text(max_size=30), noun=st.text(max_size=20))
def test_any_text_gets_sentences_and_no_error(word: str, noun: str) -> None:
    assert all(note.endswith(".") for note in check_identifier(word, words(), tokens, noun))
    assert all(note.endswith(".") for note in check_class_noun(noun, tokens))


@pytest.mark.parametrize("noun", ["dog", "coffee mug", "person", "Corgi", "backpack", "ice cream truck"])
def test_common_classes_are_fine(noun: str) -> None:
    assert check_class_noun(noun, tokens) == []


@pytest.mark.parametrize(
    ("noun", "says"),
    [
        ("xqzt", "3 tokens"),
        ("labradoodle dog", '"labradoodle" as 2 tokens'),
        ("ohwx", "good for an identifier"),
        ("my little brown dog", "is a description"),
    ],
)
def test_doubtful_classes_are_warned_of(noun: str, says: str) -> None:
    assert any(says in note for note in check_class_noun(noun, tokens))


def test_the_deny_list_is_lower_case_and_short() -> None:
    assert len(DENIED) > 1000
    assert all(word.isascii() and word.islower() and 2 <= len(word) <= 4 for word in DENIED)
