"""Weights in prompts: `(a)`, `(a:1.2)`, `[a]`, escapes and BREAK.

A single pass with a stack. Every closing bracket multiplies the weights of all that has come since its opening one;
brackets that never close count to the end of the text, and stray closing ones are text.
"""

from __future__ import annotations

import re
from itertools import groupby

from lib_methods.errors import UserError

ROUND = 1.1
SQUARE = 1 / 1.1
BREAK = ("BREAK", -1)
LARGEST_WEIGHT = 1000.0

_TOKEN = re.compile(
    r"""
    \\[()\[\]\\]                                # an escaped bracket or backslash
  | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)   # the end of (text:1.2)
  | [()\[\]\\:]                                 # one special character
  | [^()\[\]\\:]+                               # plain text
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_MOST_SCALED = 1_000_000
"""How many weights the brackets of one text may change, those within each other counted again and again. A long prompt
has some thousands; what goes beyond is hostile, and its further brackets change nothing."""


def check_weight(weight: float, what: str) -> None:
    """Raises UserError for a weight that makes numbers too large for the model; `what` as in "attention weight"."""
    if not abs(weight) <= LARGEST_WEIGHT:
        raise UserError(
            f"The prompt has an {what} of {weight:.3g}. Use at most {LARGEST_WEIGHT:g}; many brackets multiply."
        )


def parse_prompt_attention(text: str) -> list[list[str | float]]:
    """Splits `text` into pieces with their weights: `"a (b:1.5)"` -> `[["a ", 1.0], ["b", 1.5]]`.

    Neighbours of equal weight are joined. The keyword BREAK comes out as the pair `["BREAK", -1]`. Never raises: what
    is not well formed counts as text.
    """
    pieces: list[list[str | float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    room = _MOST_SCALED

    def scale(start: int, factor: float) -> None:
        nonlocal room
        room -= len(pieces) - start
        for piece in pieces[start:] if room >= 0 else ():
            if tuple(piece) != BREAK:
                piece[1] = float(piece[1]) * factor

    for match in _TOKEN.finditer(text):
        token, weight = match.group(0), match.group("weight")
        if token[0] == "\\" and len(token) == 2:
            pieces.append([token[1], 1.0])
        elif token in opened:
            opened[token].append(len(pieces))
        elif weight is not None and opened["("]:
            scale(opened["("].pop(), float(weight))
        elif token == ")" and opened["("]:
            scale(opened["("].pop(), ROUND)
        elif token == "]" and opened["["]:
            scale(opened["["].pop(), SQUARE)
        else:
            parts = _BREAK.split(token)
            for index, part in enumerate(parts):
                part = part.lstrip() if index else part
                if index:
                    pieces.append(list(BREAK))
                pieces.append([part.rstrip() if index < len(parts) - 1 else part, 1.0])

    for start in opened["("]:
        scale(start, ROUND)
    for start in opened["["]:
        scale(start, SQUARE)

    joined: list[list[str | float]] = []
    for weight, equal in groupby((piece for piece in pieces if piece[0] != ""), key=_kind):
        same = list(equal)
        if weight is None:
            joined.extend(same)
        else:
            joined.append(["".join(str(text) for text, _ in same), weight])
    return joined or [["", 1.0]]


def _kind(piece: list[str | float]) -> float | None:
    """What neighbours that are joined have in common: their weight; None for BREAK, which stays alone."""
    return None if tuple(piece) == BREAK else float(piece[1])
