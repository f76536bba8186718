"""The pairs "key: value" of an infotext, in quotes where they must be; and what is read of one."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

NEGATIVE = "Negative prompt:"
SIZE_KEYS = frozenset(("Size", "Hires resize", "First pass size", "Seed resize from"))
"""Fields that are nothing but a size."""

_SIZE = re.compile(r"(\d+)x(\d+)")
_SIZE_BY_HAND = re.compile(r"(\d+)\s*[xX×*]\s*(\d+)\s*(?:px)?\.?")
_SPECIAL = re.compile('[,:"\\x00-\\x1f\\x7f\\x85\u2028\u2029]')
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)(?=\s*(?:$|,(?!\d)))")  # a list, and 1,234,567, have more commas
_BACKSLASHES = re.compile(r'\\+"?|"')
_JSON = json.JSONDecoder()


class Infotext(NamedTuple):
    """`fields` holds text; a size comes as "KEY-1" and "KEY-2". Empty: there is no line of parameters."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]


class Pair(NamedTuple):
    key: str
    text: str
    quoted: bool


def quote(text: Any) -> Any:
    """A value as an infotext has it: in quotes, as JSON, where it would not be read back as it is."""
    plain = str(text)
    if plain and plain == plain.strip() and not _SPECIAL.search(plain):
        return text
    try:
        return json.dumps(text, ensure_ascii=False)
    except (TypeError, ValueError):  # an object of some script's
        return json.dumps(plain, ensure_ascii=False)


def unquote(text: str) -> Any:
    """The opposite of `quote`; what is not quoted, or not well, stays."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def pairs(line: str) -> list[Pair]:
    """The pairs of a line of parameters, in order.

    A key is letters, digits, blanks, dashes and slashes, two at least. A value ends at the next comma, unless it is in
    quotes or JSON, or a number with a decimal comma: 7,5 becomes 7.5.
    """
    closing = _closing_quotes(line)
    found: list[Pair] = []
    at, json_fits = 0, True
    colon = line.find(":")
    while colon >= 0:
        start = _key_start(line, at, colon)
        if start is None:
            colon = line.find(":", colon + 1)
            continue
        begin = colon + 1
        while begin < len(line) and line[begin].isspace():
            begin += 1
        first, end = line[begin : begin + 1], -1
        if first == '"':
            following = bisect_right(closing, begin)
            end = closing[following] + 1 if following < len(closing) else -1
        elif first in ("{", "[") and json_fits:
            try:
                end = _JSON.raw_decode(line, begin)[1]
            except (ValueError, RecursionError):
                json_fits = False  # one attempt: hostile text has a thousand
        if end < 0 or line[end : end + 1] not in ("", ","):
            comma = line.find(",", begin)
            end = len(line) if comma < 0 else comma
        raw = line[begin:end].strip()
        if number := _DECIMAL_COMMA.match(line, begin):
            raw, end = f"{number[1]}.{number[2]}", number.end()
        text = unquote(raw)
        found.append(Pair(" ".join(line[start:colon].split()), str(text), text is not raw))
        at = end + 1
        colon = line.find(":", at)
    return found


def _key_start(line: str, at: int, colon: int) -> int | None:
    """Where the key before the colon begins, not before `at`; None if there is none."""
    start = None
    index = colon - 1
    while index >= at and ((word := line[index].isalnum() or line[index] == "_") or line[index] in " \xa0-/"):
        start = index if word else start
        index -= 1
    return start if start is not None and colon - start >= 2 else None


def _closing_quotes(line: str) -> list[int]:
    """Positions of the quotes that no backslash escapes."""
    return [
        match.end() - 1
        for match in _BACKSLASHES.finditer(line)
        if match[0].endswith('"') and (match.end() - match.start()) % 2
    ]


def as_fields(found: Iterable[Pair]) -> dict[str, str]:
    """Pairs as a dict. A size is split; a value that only looks like one ("4x4" in a prompt) stays whole as well."""
    fields: dict[str, str] = {}
    for key, text, quoted in found:
        size = None if quoted else (_SIZE_BY_HAND if key in SIZE_KEYS else _SIZE).fullmatch(text)
        if size is not None:
            fields[f"{key}-1"], fields[f"{key}-2"] = size.groups()
        if size is None or key not in SIZE_KEYS:
            fields[key] = text
    return fields


def with_prompts(prompt: str, negative: str, found: Iterable[Pair]) -> Infotext:
    """An infotext of its prompts and pairs; prompts among the pairs win, see `write`."""
    fields = as_fields(found)
    return Infotext(fields.pop("Prompt", prompt), fields.pop("Negative prompt", negative), fields)
