"""The user's words in a sentence: cleaned, with their article, in the plural, found again and swapped in a caption."""

from __future__ import annotations

import re
import unicodedata

from lib_methods.checks import SettingsError, seen

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

_IRREGULAR = {
    "person": "people",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "wife": "wives",
    "shelf": "shelves",
}
_NO_MEN = ("human", "german", "roman", "shaman", "talisman", "caiman", "ottoman")
_GOES_ON = re.compile(r"\s+(?!(?:and|or|is|are|of|with|in|on|at|from|under|over|by|for|near|to)\b)\w", re.IGNORECASE)
"""A noun to which the words before it belong."""
_SHOWN = 60  # characters of a caption in a sentence


class SentencesError(SettingsError):
    """Words or sentences that cannot be used; the message says why in the user's words."""


def clean_word(word: object) -> str:
    """The user's word or words as they are put into sentences: NFC, single blanks, 1 to 100 characters.

    Raises:
        SentencesError: there is none, it is too long, or it holds characters that cannot be seen.
    """
    if not isinstance(word, str) or not word.strip():
        raise SentencesError("Enter what the image shows and what it should become.")
    clean = " ".join(unicodedata.normalize("NFC", word).split())
    if len(clean) > MAX_WORD:
        raise SentencesError(f"Use a word or two: at most {MAX_WORD} characters.")
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


def plural_of(phrase: str) -> str:
    """The phrase with its last word in the plural, as English writes it; what is one already stays as it is."""
    start, blank, noun = phrase.rpartition(" ")
    small = noun.casefold()
    if is_noun_alone(noun):
        return phrase
    if small in _IRREGULAR:
        many = _IRREGULAR[small]
    elif small.endswith("man") and small not in _NO_MEN:
        many = noun[:-2] + "en"
    elif re.search(r"(?:s|x|z|ch|sh)$", small):
        many = noun + "es"
    elif re.search(r"[^aeiou]y$", small):
        many = noun[:-1] + "ies"
    else:
        many = noun + "s"
    return start + blank + many


def swapped(caption: str, source: str, target: str) -> str:
    """The caption with the target wherever it has the source, in any case, as whole words or in the plural.

    In scripts without blanks the source is found anywhere. "a" or "an" in front follows the new word, and falls away
    where that takes none. Words are otherwise put in as they are.

    Raises `SentencesError` if the caption does not have the source, or is the same with the target, or if a word cannot
    be used.
    """
    source, target = without_article(clean_word(source)), without_article(clean_word(target))
    text = unicodedata.normalize("NFC", caption)
    found = _put(text, source, target)
    if found == text and not source.isascii():
        found = text.replace(source, target)
    if found == text:
        shown = " ".join(text.split())
        shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
        if re.search(_pattern(source), text, re.IGNORECASE):
            raise SentencesError(f'The caption "{shown}" is the same with "{target}": there is nothing to change.')
        raise SentencesError(
            f'"{source}" is not in the caption "{shown}", so it cannot be swapped. Name a word of the '
            "caption, or take the direction from sentences."
        )
    return found


def _pattern(source: str) -> str:
    """Group 1: "a" or "an" with its blanks, 2: the source, or 3: its plural."""
    one, many = (r"\s+".join(map(re.escape, words.split())) for words in (source, plural_of(source)))
    return rf"(?<!\w)(an?\s+)?(?:({one})|({many}))(?!\w)"


def _put(text: str, source: str, target: str) -> str:
    def new(match: re.Match[str]) -> str:
        article, _, many = match.groups()
        word = plural_of(target) if many else target
        if not article:
            return word
        is_last = not _GOES_ON.match(match.string, match.end())
        if brings_its_own(word) or (is_last and is_noun_alone(word)):
            return word
        fitting = article_of(word)
        return (fitting.capitalize() if article[0].isupper() else fitting) + article[len(article.rstrip()) :] + word

    return re.sub(_pattern(source), new, text, flags=re.IGNORECASE)
