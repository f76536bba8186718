"""Finds what a name means, as people and other programs write it: in any case, with or without a file's ending."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from .errors import UserError

T = TypeVar("T")
_LONGEST_LIST = 40


def folded(name: str) -> str:
    """`name` without what makes no difference: case, accents' encoding, spaces around it and doubled inside."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def folded_file(name: str) -> str:
    """The same for the name of a model's file, whose ending makes no difference, nor which slash a folder has."""
    return folded(name.replace("\\", "/")).removesuffix(".safetensors")


def find(name: str, table: Mapping[str, T], fold: Callable[[str], str] = folded) -> T | None:
    """The entry called exactly `name`, else the only one whose name folds to the same; None where there is none."""
    if name in table:
        return table[name]
    wanted = fold(name)
    found = {id(value): value for key, value in table.items() if wanted and fold(key) == wanted}
    return next(iter(found.values())) if len(found) == 1 else None


def is_text(name: str) -> bool:
    """Whether a file's name can be written in an answer; names of other encodings cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: object) -> str:
    """`text` as it can stand in a sentence: one line, at most 80 letters, nothing that cannot be printed or encoded."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:80])


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that nothing has; `kind` as in "sampler", `known` are the names to choose from."""
    choices = list(known)
    listed = ", ".join(choices[:_LONGEST_LIST]) + (" ..." if len(choices) > _LONGEST_LIST else "")
    return UserError(f"There is no {kind} named '{shown(name)}'. Available: {listed or 'none'}.")
