"""The language of prompts: weights with BREAK, and prompt editing over the steps. What is not well formed is text.

Prompt editing: `[from:to:when]`, `[to:when]`, `[from::when]` change the prompt after step `when`: a whole number is a
step, a number with a dot a share of all steps. `[a|b|c]` takes turns. Both nest, inside weights as well. With Hires.
fix the steps of the second pass follow those of the first: whole numbers go on counting, shares from 1 to 2 belong to
the second pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
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

    A single pass with a stack. Every closing bracket multiplies the weights of all that has come since its opening one;
    brackets that never close count to the end of the text. Neighbours of equal weight are joined. The keyword BREAK
    comes out as the pair `["BREAK", -1]`. Never raises.
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


_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_PLAIN = re.compile(r"[^\\\[\]():|]+")


@dataclass
class Sequence_:
    """Parts one after another."""

    parts: list[object]


@dataclass
class Scheduled:
    """`before` up to step `when`, then `after`; `when` is a number as it was written."""

    before: Sequence_
    after: Sequence_
    when: str


@dataclass
class Alternate:
    """One option after another, a step each."""

    options: list[Sequence_]


class _Parser:
    """Recursive descent; a bracket that turns out to be no schedule keeps its parts as text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.end = len(text)
        # ends of square brackets, found once, so that no hostile input ("[[[[[[...") is read again and again
        self.closing = _match_brackets(text)

    def sequence(self, stops: tuple[str, ...]) -> Iterator[object]:
        """Parts up to one of `stops` at this level, or to the end."""
        depth = 0
        while self.at < self.end:
            char = self.text[self.at]
            plain = _PLAIN.match(self.text, self.at, self.end)
            if plain is not None:
                yield plain[0]
                self.at = plain.end()
            elif char == "\\" and self.at + 1 < self.end:
                yield self.text[self.at : self.at + 2]
                self.at += 2
            elif char in stops and depth == 0:
                return
            elif char == "[" and self.at in self.closing:
                yield self.bracket()
            else:
                depth += {"(": 1, ")": -1 if depth else 0}.get(char, 0)
                yield char
                self.at += 1

    def bracket(self) -> object:
        """What stands between the `[` at the cursor and its `]`."""
        outer, end = self.end, self.closing[self.at]
        self.at, self.end = self.at + 1, end
        fields, separators = self.fields()
        self.at, self.end = end + 1, outer
        if separators and set(separators) == {"|"}:
            return Alternate(fields)
        if separators and set(separators) == {":"} and len(fields) in (2, 3):
            when = _NUMBER.fullmatch(_plain(fields[-1]).strip())
            if when is not None:
                before = fields[0] if len(fields) == 3 else Sequence_([])
                return Scheduled(before, fields[-2], when[0])
        return Sequence_(["[", *_rejoin(fields, separators), "]"])

    def fields(self) -> tuple[list[Sequence_], list[str]]:
        """Splits the text up to the end at `:` and `|` outside brackets; colons inside round brackets are weights."""
        fields, separators = [Sequence_(list(self.sequence((":", "|"))))], []
        while self.at < self.end:
            separators.append(self.text[self.at])
            self.at += 1
            fields.append(Sequence_(list(self.sequence((":", "|")))))
        return fields, separators


def _match_brackets(text: str) -> dict[int, int]:
    """Positions of `[` with those of their `]`; escaped ones do not count."""
    opened: list[int] = []
    pairs: dict[int, int] = {}
    index = 0
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        if text[index] == "[":
            opened.append(index)
        elif text[index] == "]" and opened:
            pairs[opened.pop()] = index
        index += 1
    return pairs


def _rejoin(fields: list[Sequence_], separators: list[str]) -> Iterator[object]:
    for index, field in enumerate(fields):
        if index:
            yield separators[index - 1]
        yield field


def _plain(node: Sequence_) -> str:
    """The text of a node, "" when there are brackets in it."""
    texts = [part for part in node.parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(node.parts) else ""


@dataclass(frozen=True)
class Timeline:
    """How `when` is read: the steps of this pass, and what comes before it."""

    steps: int
    int_offset: int = 0
    share_offset: float = 0.0
    old: bool = False

    def boundary(self, when: str) -> int:
        """The last step (from 1) at which `before` holds; at most `steps`, below 1 when it never does."""
        value = float(when)
        if self.old:
            value = value * self.steps if value < 1 else value
        elif "." in when:
            value = (value - self.share_offset) * self.steps
        else:
            value = value - self.int_offset
        return min(self.steps, int(max(-1e9, min(value, 1e9))))


def _add_boundaries(node: object, timeline: Timeline, found: set[int]) -> None:
    """Adds all steps after which the prompt may change."""
    inner: list[Sequence_] = []
    if isinstance(node, Scheduled):
        if (step := timeline.boundary(node.when)) >= 1:
            found.add(step)
        inner = [node.before, node.after]
    elif isinstance(node, Alternate):
        if len(found) < timeline.steps:
            found.update(range(1, timeline.steps + 1))
        inner = node.options
    for part in node.parts if isinstance(node, Sequence_) else inner:
        if not isinstance(part, str):
            _add_boundaries(part, timeline, found)


def text_at(node: object, step: int, timeline: Timeline) -> str:
    """The prompt at `step` (from 1)."""
    if isinstance(node, str):
        return node
    if isinstance(node, Sequence_):
        return "".join(text_at(part, step, timeline) for part in node.parts)
    if isinstance(node, Scheduled):
        return text_at(node.before if step <= timeline.boundary(node.when) else node.after, step, timeline)
    assert isinstance(node, Alternate)
    return text_at(node.options[(step - 1) % len(node.options)], step, timeline)


def prompt_schedule(prompt: str, timeline: Timeline) -> list[list[int | str]]:
    """`[[last step, text], ...]` with rising steps, the last of them `timeline.steps`."""
    try:
        tree = Sequence_(list(_Parser(prompt).sequence(())))
        ends = {timeline.steps}
        _add_boundaries(tree, timeline, ends)
        return [[end, text_at(tree, end, timeline)] for end in sorted(ends)]
    except RecursionError:
        # brackets nested hundreds deep: no schedule, just text
        return [[timeline.steps, prompt]]
