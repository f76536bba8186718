"""Weights in prompts: `(a)`, `(a:1.2)`, `[a]`, escapes and BREAK.

A single pass with a stack. Every closing bracket multiplies the weights of all that has come since its opening one;
brackets that never close count to the end of the text, and stray closing ones are text.
"""

from __future__ import annotations

import re

ROUND = 1.1
SQUARE = 1 / 1.1
BREAK = ("BREAK", -1)

_TOKEN = re.compile(
    r"""
    \\[()\[\]\\]                                # an escaped bracket or backslash
  | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)   # the end of (text:1.2)
  | [()\[\]\\:]                                 # one special character
  | [^()\[\]\\:]+                               # plain text
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*", re.DOTALL)


def parse_prompt_attention(text: str) -> list[list[str | float]]:
    """Splits `text` into pieces with their weights: `"a (b:1.5)"` -> `[["a ", 1.0], ["b", 1.5]]`.

    Neighbours of equal weight are joined. The keyword BREAK comes out as the pair `["BREAK", -1]`. Never raises: what
    is not well formed counts as text.
    """
    pieces: list[list[str | float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(start: int, factor: float) -> None:
        for piece in pieces[start:]:
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
            for index, part in enumerate(_BREAK.split(token)):
                if index:
                    pieces.append(list(BREAK))
                pieces.append([part, 1.0])

    for start in opened["("]:
        scale(start, ROUND)
    for start in opened["["]:
        scale(start, SQUARE)

    joined: list[list[str | float]] = []
    for piece in pieces:
        if joined and joined[-1][1] == piece[1] and tuple(piece) != BREAK:
            joined[-1][0] = str(joined[-1][0]) + str(piece[0])
        elif piece[0] != "":
            joined.append(piece)
    return joined or [["", 1.0]]
