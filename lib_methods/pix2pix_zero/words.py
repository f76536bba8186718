"""The user's words in a sentence: cleaned, with the article that English gives them, found again in a text."""

from __future__ import annotations

import re
import unicodedata

from lib_methods.checks import SettingsError
from lib_methods.webui.names import seen

MAX_WORD = 100

_DETERMINERS = frozenset(
    "a an the my your his her its our their this that these those some any every each no another many several few both "
    "all two three four five six seven eight nine ten".split()
)
_PLURALS = frozenset(
    "people children men women feet teeth geese mice oxen cattle police glasses scissors pants jeans sheep deer fish "
    "aircraft".split()
)
_MASSES = frozenset(
    "snow rain water grass fire hair fog smoke sand ice mud sunlight moonlight weather food bread fruit furniture "
    "clothing gold silver wood hay jewelry makeup lava lightning traffic graffiti armor armour fur".split()
)
_SINGULARS_IN_S = frozenset("lens gas canvas atlas christmas bias alias chaos rhinoceros pythagoras".split())
_PREPOSITIONS = frozenset("of with in on at from under over by for near without wearing holding made".split())
_SOUNDS_LIKE_A_CONSONANT = re.compile(
    r"uni(?:[cfoqstv]|$)|us(?:e|u|a[bg])|ut(?:e|o|il)|uk|ur(?:a|i)|ufo|ubi|eu|ewe|one\b|once\b", re.IGNORECASE
)
_SOUNDS_LIKE_A_VOWEL = re.compile(r"hour|honest|hono|heir|x-|8|11\b|18\b", re.IGNORECASE)


class SentencesError(SettingsError):
    """Words or sentences that cannot be used; the message says why in the user's words."""


def clean_word(word: object) -> str:
    """The user's word or words as they are put into sentences: NFC, single blanks, 1 to 100 characters.

    Raises:
        SentencesError: there is none, it is too long, or it holds characters that cannot be seen.
    """
    if not isinstance(word, str) or not word.strip():
        raise SentencesError("Type what the picture shows and what it should become.")
    clean = " ".join(unicodedata.normalize("NFC", word).split())
    if len(clean) > MAX_WORD:
        raise SentencesError(f"A word or two, please: at most {MAX_WORD} characters.")
    if seen(clean) != clean:
        raise SentencesError("The word holds characters that cannot be seen or typed.")
    return clean


def with_article(phrase: str) -> str:
    """The phrase as English puts it into a sentence: "a cat", "an old man", "cats", "snow", "the Eiffel Tower".

    A phrase that brings its article or number keeps it; plurals, masses, names of several words and words in other
    scripts get none.
    """
    if brings_its_own(phrase) or is_noun_alone(phrase):
        return phrase
    return f"{article_of(phrase)} {phrase}"


def brings_its_own(phrase: str) -> bool:
    """Whether the phrase begins with an article, a number or the like: "two cats", "my cat"."""
    first = phrase.split()[0]
    return first.casefold() in _DETERMINERS or first.isdigit()


def is_noun_alone(phrase: str) -> bool:
    """Whether English has the phrase without "a": plurals, masses, names of several words; other scripts, too."""
    words = phrase.split()
    name = len(words) > 1 and all(word[0].isupper() for word in words)
    return name or not _base_letter(words[0]) or _takes_no_article(words)


def article_of(word: str) -> str:
    """ "an" before a vowel sound, else "a"."""
    letters = re.match(r"[A-Z]+", word)
    if letters and len(letters[0]) > 1:  # spelt out: an SUV, a UFO
        return "an" if word[0] in "AEFHILMNORSX" else "a"
    if _SOUNDS_LIKE_A_VOWEL.match(word):
        return "an"
    return "an" if _base_letter(word) in set("aeiou") and not _SOUNDS_LIKE_A_CONSONANT.match(word) else "a"


def without_article(phrase: str) -> str:
    """The phrase without a leading a, an or the, where something is left."""
    return re.sub(r"^(?:an?|the)\s+(?=\S)", "", phrase, flags=re.IGNORECASE)


def mentions(sentence: str, phrase: str) -> bool:
    """Whether the sentence has the phrase, in any case, as whole words or with a plural's ending; in scripts without
    blanks anywhere."""
    bare = without_article(phrase).casefold()
    text = " ".join(unicodedata.normalize("NFC", sentence).casefold().split())
    if not bare.isascii():
        return bare in text
    return re.search(rf"(?<!\w){re.escape(bare)}(?:e?s|'s)?(?!\w)", text) is not None


def _base_letter(word: str) -> str:
    """The first letter or digit without its accents, in small letters; nothing if it is not of the Latin script."""
    letter = unicodedata.normalize("NFD", word)[0].casefold()
    return letter if letter.isascii() and letter.isalnum() else ""


def _takes_no_article(words: list[str]) -> bool:
    """Whether the noun of the phrase, the word before the first preposition, is a plural or a mass."""
    small = [word.casefold().strip(",.;") for word in words]
    end = next((place for place, word in enumerate(small) if place and word in _PREPOSITIONS), len(small))
    noun = small[end - 1]
    if noun in _PLURALS or noun in _MASSES:
        return True
    return (
        len(noun) > 3 and noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in _SINGULARS_IN_S
    )
