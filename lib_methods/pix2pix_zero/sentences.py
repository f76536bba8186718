"""Several hundred sentences about a word: from built-in templates, or from the user's own text.

An edit direction is the mean over many sentences, so that what the sentences say besides the word cancels out. The
same templates serve source and target, in the same order.
"""

from __future__ import annotations

import codecs
import itertools
import os
from pathlib import Path

from lib_methods.checks import check_choice
from lib_methods.pix2pix_zero.words import (
    SentencesError,
    article_of,
    clean_word,
    mentions,
    with_article,
    without_article,
)

OBJECT, STYLE, ADJECTIVE = "object", "style", "adjective"
KINDS = (OBJECT, STYLE, ADJECTIVE)

MAX_FILE_BYTES = 2**20
MAX_SENTENCES = 5000
MAX_SENTENCE = 1000
PLACEHOLDER = "{word}"

_PICTURES = (
    "a photo of {}",
    "a photograph of {}",
    "a picture of {}",
    "a close-up of {}",
    "a wide shot of {}",
    "a snapshot of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a black and white photo of {}",
    "a drawing of {}",
    "an oil painting of {}",
    "an illustration of {}",
    "a film still with {}",
    "a postcard with {}",
    "nothing but {}",
    "{}",
)
_PLACES = (
    "",
    " in a garden",
    " beside a quiet road",
    " in front of a brick wall",
    " on a wooden table",
    " near the sea",
    " in the middle of a field",
    " in a small room",
    " by the window",
    " in the morning light",
    " at night",
    " on a cloudy day",
    " under a tree",
    " in the city",
    " against a plain background",
    ", seen from the side",
)
_TALES = (
    "we came across {}",
    "she was looking at {}",
    "he could not stop thinking about {}",
    "the children pointed at {}",
    "nobody had noticed {}",
    "they sent us a picture of {}",
    "everyone at the table talked about {}",
    "there was room for {}",
    "my neighbour has always wanted {}",
    "the story begins with {}",
)
_TIMES = (
    "",
    " this morning",
    " on the way home",
    " last summer",
    " a minute ago",
    " after the rain",
    " for a long while",
    " once more",
    " that afternoon",
    " in the end",
)
_SUBJECTS = (
    "a house",
    "a cat",
    "a dog",
    "a horse",
    "a woman",
    "a man",
    "a child",
    "a street",
    "a mountain",
    "a river",
    "a forest",
    "a tree",
    "a flower",
    "a bowl of fruit",
    "a bird",
    "a ship",
    "a car",
    "a bridge",
    "a castle",
    "a city at night",
    "a village in winter",
    "a room with a window",
    "a crowd of people",
    "the sea",
    "the sky in the evening",
)
_STYLES = (
    "{subject} in the style of {word}",
    "{subject}, {word} style",
    "{word} style picture of {subject}",
    "a picture of {subject} that looks like {word}",
    "{subject} as {word}",
    "{word}, showing {subject}",
    "an artwork of {subject}, done as {word}",
    "{subject}, everything in the manner of {word}",
    "{word} of {subject}",
    "typical {word} with {subject}",
    "what {subject} looks like in {word}",
    "{subject} rendered as {word}, full of detail",
)
_NOUNS = (
    "house",
    "cat",
    "dog",
    "horse",
    "woman",
    "man",
    "child",
    "street",
    "mountain",
    "river",
    "forest",
    "tree",
    "flower",
    "table",
    "bird",
    "ship",
    "car",
    "bridge",
    "castle",
    "city",
    "village",
    "room",
    "garden",
    "sky",
    "landscape",
)
_TRAITS = (
    "a photo of {one}",
    "a picture of {one} at noon",
    "a close-up of {one}",
    "a painting of {one}",
    "{one} in the distance",
    "{one} in the middle of the picture",
    "the {noun} is {word}",
    "a {noun} that is {word}",
    "this {noun} looks very {word}",
    "we passed {one} on our way",
    "nothing is as {word} as this {noun}",
    "{word}: a {noun} and its surroundings",
)


def built_in_sentences(word: str, kind: str = OBJECT) -> list[str]:
    """Several hundred different sentences about the word, always the same.

    word: what the picture shows or should become, with or without an article: "cat", "an old man", "the moon".
    kind: "object" for things and beings, "style" for ways of drawing ("watercolour", "pixel art"), "adjective" for
    properties ("snowy", "golden").

    Raises `SentencesError` for a word that cannot be used, `SettingsError` for another kind.
    """
    word = clean_word(word)
    check_choice("The kind of word", kind, KINDS)
    if kind == OBJECT:
        thing = with_article(word)
        told = itertools.chain(itertools.product(_PICTURES, _PLACES), itertools.product(_TALES, _TIMES))
        # Not str.format: the user's word may hold braces.
        return [start.replace("{}", thing) + end for start, end in told]
    word = without_article(word)
    if kind == STYLE:
        return [
            frame.replace("{subject}", subject).replace(PLACEHOLDER, word)
            for frame, subject in itertools.product(_STYLES, _SUBJECTS)
        ]
    return [
        frame.replace("{one}", f"{article_of(word)} {PLACEHOLDER} {{noun}}")
        .replace("{noun}", noun)
        .replace(PLACEHOLDER, word)
        for frame, noun in itertools.product(_TRAITS, _NOUNS)
    ]


def parse_sentences(text: str, word: str) -> list[str]:
    """The sentences of a text, one per line, in their order and without repeats.

    Empty lines and lines that begin with # are left out. `{word}` in a line stands for the word with its article, so
    that one text serves source and target.

    Raises:
        SentencesError: no line is left, a line or the text is too long, or the word is in none of the sentences.
    """
    word = clean_word(word)
    found: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        sentence = " ".join(line.split())
        if not sentence or sentence.startswith("#"):
            continue
        if len(sentence) > MAX_SENTENCE:
            raise SentencesError(f"Line {number} is too long for a sentence: at most {MAX_SENTENCE} characters.")
        found[sentence.replace(PLACEHOLDER, with_article(word))] = None
        if len(found) > MAX_SENTENCES:
            raise SentencesError(f"These are too many sentences: at most {MAX_SENTENCES}.")
    if not found:
        raise SentencesError("There is no sentence in the text; write one per line.")
    if not any(mentions(sentence, word) for sentence in found):
        raise SentencesError(f'No sentence of the text mentions "{without_article(word)}".')
    return list(found)


def read_sentences(path: str | os.PathLike[str], word: str) -> list[str]:
    """The sentences of a text file in UTF-8, as `parse_sentences` reads them.

    Raises `SentencesError` also for a file that is missing, larger than 1 MiB or not a text.
    """
    return parse_sentences(read_text(path), word)


def read_text(path: str | os.PathLike[str]) -> str:
    """What is in a text file in UTF-8. Raises `SentencesError` as `read_sentences` does."""
    file = Path(path)
    try:
        if not file.is_file():  # nor a folder, a device or a pipe, which would never end
            raise FileNotFoundError
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError):  # a ValueError: a path with a zero in it
        raise SentencesError("The text file cannot be found or read.") from None
    if len(content) > MAX_FILE_BYTES:
        raise SentencesError("The text file is too large: at most 1 MiB.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SentencesError("The text file is in UTF-16; save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SentencesError("The file is not a text in UTF-8.") from None
    if any(character < " " and character not in "\t\n\r\f" for character in text):
        raise SentencesError("The file is not a text: it holds binary data.")
    return text
