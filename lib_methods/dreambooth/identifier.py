"""The rare word that becomes the subject's name.

A word that the model hardly ever read has no picture of its own to be overwritten (arXiv 2208.12242, section 3.2).
CLIP's vocabulary is sorted by frequency, so the token's number says how rare a word is; and it must be one token, as
several are letters and syllables that mean something elsewhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping

from lib_methods.dreambooth.denied import DENIED
from lib_methods.dreambooth.errors import DreamBoothError

RAREST_FROM = 40_000
"""Token ids from here on are rare words; CLIP has 49,406 of them."""

Tokens = Callable[[str], list[int]]
"""The token ids of a text without start, end and padding."""

_END = "</w>"  # a token that ends a word; without it the same letters are a piece of a longer one
_LENGTHS = (3, 4, 2)
_CONSONANTS = re.compile(r"[^aeiou]{3}")


def pick_identifier(
    words: Mapping[str, int], tokens: Tokens, seed: int, count: int = 1, avoid: Collection[str] = ()
) -> list[str]:
    """`count` rare words, the same ones for the same seed, the best first.

    words, tokens: the model's vocabulary and tokenizer, see `TrainingModel`. avoid: texts whose words are not to be
    taken, in either case. Words of three letters come first, then those of four that nobody would speak, then two.
    Raises `DreamBoothError` where the vocabulary does not hold as many.
    """
    found = sorted(_candidates(words, tokens, avoid), key=lambda word: (_LENGTHS.index(len(word)), _rank(seed, word)))
    if len(found) < count:
        raise DreamBoothError(
            "This model's vocabulary has no rare word left for the subject. Choose an identifier yourself."
        )
    return found[:count]


def check_identifier(word: str, words: Mapping[str, int], tokens: Tokens, class_noun: str = "") -> list[str]:
    """Sentences about what is doubtful in a word that the user chose; none for a good one and for an empty one.

    words, tokens: as in `pick_identifier`.
    """
    plain = " ".join(word.casefold().split())
    if not plain:
        return []
    notes = []
    nouns = " ".join(class_noun.casefold().split())
    if plain == nouns:
        notes.append(
            f'The identifier "{plain}" is the class noun itself: everything of that class would become the subject.'
        )
    elif plain in nouns.split() or nouns and nouns in plain:
        notes.append(f'The identifier "{plain}" repeats the class noun "{nouns}".')
    if " " in plain:
        notes.append(f'The identifier "{plain}" is more than one word. One rare word is learnt better.')
    ids = tokens(plain)
    if len(ids) > 1 and " " not in plain:
        notes.append(
            f'The model reads "{plain}" as {len(ids)} pieces, which mean something elsewhere. A word of one piece is '
            f"learnt better{_for_example(words, tokens, plain, nouns)}."
        )
    elif len(ids) == 1 and plain in DENIED:
        notes.append(f'"{plain}" stands for something already, and the model may draw that, too.')
    elif len(ids) == 1 and ids[0] < RAREST_FROM and plain != nouns:
        notes.append(
            f'"{plain}" is a common word: the model has pictures of its own for it, and they mix with the subject'
            f"{_for_example(words, tokens, plain, nouns)}."
        )
    elif not ids:
        notes.append(f'The model\'s tokenizer drops "{plain}" altogether: it would stand for nothing.')
    return notes


def check_class_noun(noun: str, tokens: Tokens) -> list[str]:
    """Sentences about a class noun that the model hardly knows. The subject is learnt from what it knows of the class:
    with a wrong one fidelity (DINO) was .454 instead of .744 (Ruiz et al. 2022, section 4.3). Whether the photos show
    that class nobody can tell here.

    tokens: as in `pick_identifier`.
    """
    notes = []
    plain = noun.casefold().split()
    if len(plain) > 3:
        notes.append(f'The class "{" ".join(plain)}" is a description. The class is one or two words, such as "dog".')
    for word in plain:
        ids = tokens(word)
        if len(ids) > 1:
            notes.append(
                f'The model reads "{word}" as {len(ids)} pieces and may not know what that is. If there is a more '
                'common word for the class, take it ("dog", "person", "toy").'
            )
        elif len(ids) == 1 and len(word) in _LENGTHS and ids[0] >= RAREST_FROM:
            notes.append(f'"{word}" is a rare word, good for an identifier; the class must be a common one ("dog").')
    return notes


def _candidates(words: Mapping[str, int], tokens: Tokens, avoid: Collection[str]) -> list[str]:
    avoided = {part for text in avoid for part in text.casefold().split()}
    found = []
    for spelling, number in words.items():
        word = spelling[: -len(_END)]
        if number < RAREST_FROM or not spelling.endswith(_END) or len(word) not in _LENGTHS:
            continue
        if not (word.isascii() and word.isalpha() and word.islower()) or word in DENIED or word in avoided:
            continue
        if len(word) == 4 and not _CONSONANTS.search(word):  # could be a name in some language
            continue
        if tokens(word) == [number]:
            found.append(word)
    return found


def _for_example(words: Mapping[str, int], tokens: Tokens, *avoid: str) -> str:
    try:
        return f', for example "{pick_identifier(words, tokens, 0, 1, avoid)[0]}"'
    except DreamBoothError:
        return ""


def _rank(seed: int, word: str) -> bytes:
    return hashlib.sha256(f"{seed} {word}".encode("ascii")).digest()
