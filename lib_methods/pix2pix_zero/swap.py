"""One word of a caption in place of another, so that the sentence stays English: plurals and "a" or "an" follow."""

from __future__ import annotations

import re
import unicodedata

from lib_methods.pix2pix_zero.words import (
    SentencesError,
    article_of,
    brings_its_own,
    clean_word,
    is_noun_alone,
    without_article,
)

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
