"""Which kind of word the user gave, guessed from the words alone, so that they stand in sentences that suit them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lib_methods.pix2pix_zero.sentences import ADJECTIVE, OBJECT, STYLE
from lib_methods.pix2pix_zero.words import without_article

_STYLES = frozenset(
    "3d anime art artwork bauhaus caricature cartoon cinematic collage comic cyberpunk drawing engraving etching film "
    "fresco gothic graffiti illustration lego lineart linocut lithograph lowpoly manga minecraft mosaic noir origami "
    "painting pastel photo photograph photography photorealistic pixel polaroid poster realistic render rococo sketch "
    "steampunk style ukiyo-e vaporwave watercolor watercolour woodblock woodcut".split()
)
_ADJECTIVES = frozenset(
    "red orange yellow green blue purple violet pink brown black white grey gray golden silver silvery beige "
    "turquoise cyan magenta teal crimson scarlet dark bright pale light colourful colorful striped dotted spotted "
    "checkered plain solid smooth rough shiny matte wooden metal metallic stone glass plastic paper leather woollen "
    "furry fluffy hairy bald bearded young old new ancient modern broken clean dirty wet dry frozen burning burnt "
    "melting icy snowy rainy sunny cloudy foggy misty stormy windy dusty muddy rusty happy sad angry scared "
    "surprised smiling laughing crying sleeping sleepy tired big small large little tiny huge giant tall short long "
    "fat thin slim round square open closed full empty blooming withered ripe rotten bare leafy mossy dead alive "
    "winged armed naked dressed rich poor beautiful ugly cute strong weak wild tame translucent transparent".split()
)
_OF_A_KIND = re.compile(r"\w{3,}(?:ish|less|ful|ous|esque)\Z")
_ENDS_OF_STYLES = ("ism",)  # cubism, impressionism


def guess_kind(words: Iterable[str]) -> str:
    """ "style" or "adjective" where every one of the words looks like one, else "object".

    English alone is known; a wrong guess costs quality, not the edit. words: with or without an article.
    """
    phrases = [without_article(word.strip()).casefold() for word in words if word.strip()]
    if phrases and all(_is_style(phrase) for phrase in phrases):
        return STYLE
    if phrases and all(_is_adjective(phrase) for phrase in phrases):
        return ADJECTIVE
    return OBJECT


def _is_style(phrase: str) -> bool:
    """A style is named by its last word ("oil painting"), or by its first before "style", "of" or "by"."""
    words = phrase.split()
    end = next((place for place, word in enumerate(words) if place and word in ("of", "by", "in", "with")), len(words))
    last = words[end - 1]
    return last in _STYLES or last.endswith(_ENDS_OF_STYLES)


def _is_adjective(phrase: str) -> bool:
    """Only adjectives, perhaps joined: "dark blue", "old and dirty"."""
    words = [word for word in phrase.replace(",", " ").replace("-", " ").split() if word not in ("and", "very")]
    return bool(words) and all(word in _ADJECTIVES or _OF_A_KIND.match(word) for word in words)
