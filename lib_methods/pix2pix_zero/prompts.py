"""From the user's words to what the model is told: a direction for each image, and where a word stands in a caption."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from lib_methods.checks import SettingsError
from lib_methods.denoiser import Sampling, editing_of
from lib_methods.pix2pix_zero.directions import CHUNK, Direction, Origin, combine, make_direction
from lib_methods.pix2pix_zero.library import DirectionLibrary
from lib_methods.pix2pix_zero.sentences import built_in_sentences
from lib_methods.pix2pix_zero.settings import ALTERNATIVES, CAPTION, MAX_STRENGTH, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.swap import plural_of, swapped
from lib_methods.pix2pix_zero.words import without_article

CHUNK_TEXT = CHUNK - 2  # tokens of a chunk between its start and its end
KEPT = 64
"""Directions made from words that are kept for the next job: SD1's are 237 KB each."""

_TAG = re.compile(r"<\w+:[^<>]*>")  # LoRAs and the like, which hosts take out of a prompt

_kept: OrderedDict[Hashable, Direction] = OrderedDict()
_lock = threading.Lock()


def captions_for(settings: Pix2PixZeroSettings, prompts: Sequence[str]) -> tuple[str, ...]:
    """What each image shows: the caption, or else the image's prompt; without the tags of extra networks.

    Raises `SettingsError` where there is neither.
    """
    caption = _TAG.sub("", settings.caption).strip()
    captions = tuple(caption or _TAG.sub("", prompt).strip() for prompt in prompts)
    if not all(captions):
        raise SettingsError("Describe the image: write it into the prompt or the caption.")
    return captions


def directions_for(
    sampling: Sampling, settings: Pix2PixZeroSettings, folder: Path, first: int, captions: Sequence[str]
) -> tuple[Direction, ...]:
    """What is added to each image's prompt at strength 1.

    folder: of the direction library. first: the number of the batch's first image in the job, counted from 0; targets
    and directions that are given as alternatives take turns over the job's images. captions: what each image shows.

    Raises `SettingsError` with a sentence for the user.
    """
    if settings.directions:
        library = DirectionLibrary(folder)
        choices = [combined(text, library) for text in settings.directions.split(ALTERNATIVES) if text.strip()]
        if not choices:
            raise SettingsError("There is no direction between the bars. Name one from the library.")
    elif settings.direction_from == CAPTION:
        pairs = settings.pairs
        return tuple(
            _from_caption(sampling, caption, *pairs[(first + index) % len(pairs)])
            for index, caption in enumerate(captions)
        )
    else:
        choices = [_from_words(sampling, *pair, settings.words_are) for pair in settings.pairs]
    like = editing_of(sampling).embed([""])
    for choice in choices:
        choice.check_width(like.context.shape[-1], None if like.vector is None else like.vector.shape[-1])
    return tuple(choices[(first + index) % len(choices)] for index in range(len(captions)))


def combined(text: str, library: DirectionLibrary) -> Direction:
    """The weighted sum that "cat to dog: 1, day to night: -0.5" means."""
    parts = []
    for part in text.split(","):
        if not part.strip():
            continue
        name, colon, weight = part.rpartition(":")
        if not colon:
            name, weight = part, "1"
        try:
            value = float(weight)
        except ValueError:  # a name with a colon in it
            name, value = part, 1.0
        if not -MAX_STRENGTH <= value <= MAX_STRENGTH:  # false for NaN, too
            raise SettingsError(f"The weight of a direction must be between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}.")
        parts.append((library.get(name.strip()), value))
    if len(parts) == 1 and parts[0][1] < 0:  # its record says which way it goes
        return combine([(parts[0][0].reversed(), -parts[0][1])])
    return combine(parts)


def _from_words(sampling: Sampling, source: str, target: str, kind: str) -> Direction:
    """The direction from the source to a target by sentences about both."""

    def make() -> Direction:
        before, after = built_in_sentences(source, kind), built_in_sentences(target, kind)
        return make_direction(source, target, before, after, editing_of(sampling).embed)

    return _remembered((sampling.model_key(), source, target, kind), make)


def _from_caption(sampling: Sampling, caption: str, source: str, target: str) -> Direction:
    """The direction from a caption to itself with the target in place of the source."""
    after = swapped(caption, source, target)

    def make() -> Direction:
        told = editing_of(sampling).embed([caption, after])
        vector = None if told.vector is None else told.vector[1] - told.vector[0]
        return Direction(told.context[1] - told.context[0], Origin(source, target), vector)

    return _remembered((sampling.model_key(), source, target, CAPTION, caption), make)


def _remembered(key: Hashable, make: Callable[[], Direction]) -> Direction:
    """What was made for the key, made anew where that is long ago. The model is part of every key."""
    with _lock:
        found = _kept.get(key)
    if found is None:
        found = make()
    with _lock:
        _kept[key] = found
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return found


def positions_of(sampling: Sampling, caption: str, word: str) -> tuple[int, ...]:
    """The tokens of a word in a caption, every time that it occurs, also with a plural's ending; counted from 0, which
    is the start token. Empty where the caption does not have the word.

    Commas and emphasis of long captions may move the borders of 75-token chunks, which is not looked at.
    """
    tokenize = editing_of(sampling).tokenize
    tokens, wanted = tokenize(caption), tokenize(without_article(word))
    found: list[int] = []
    forms = dict.fromkeys((without_article(word) + "s", plural_of(without_article(word))))
    for form in (wanted, *map(tokenize, forms)):
        found += _occurrences(tokens, form)
    return tuple(sorted({1 + place + 2 * (place // CHUNK_TEXT) for place in found}))


def _occurrences(tokens: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The places of all tokens of `wanted` where it occurs in `tokens` as a whole."""
    size = len(wanted)
    if not size:
        return []
    starts = [start for start in range(len(tokens) - size + 1) if list(tokens[start : start + size]) == list(wanted)]
    return [start + offset for start in starts for offset in range(size)]
