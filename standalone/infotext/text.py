"""Infotext as text: prompts, then one line of "key: value" pairs, in the form of the WebUI v1.10.1.

What `write` makes, `read` gives back exactly, and the WebUI reads it too. Reading never raises and takes time in
proportion to the text's length. Texts that others wrote, or that lost their line breaks on the way, are `foreign.py`'s,
and JSON is `metadata.py`'s.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_LENGTH = 1_000_000
"""Letters; no host writes a tenth of this."""
OURS = "steer-"
"""What "Version" begins with where this host wrote the text: its prompts keep every blank and line break."""
NEGATIVE = "Negative prompt:"
SIZE_KEYS = frozenset(("Size", "Hires resize", "First pass size", "Seed resize from"))
"""Fields that are nothing but a size."""

_SIZE = re.compile(r"(\d+)x(\d+)")
_SIZE_BY_HAND = re.compile(r"(\d+)\s*[xX×*]\s*(\d+)\s*(?:px)?\.?")
_SPECIAL = re.compile('[,:"\\x00-\\x1f\\x7f\\x85\u2028\u2029]')
_BACKSLASHES = re.compile(r'\\+"?|"')
_INNER_NEGATIVE = re.compile(rf"\n[^\S\n]*(?={NEGATIVE})")
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
    quotes or JSON.
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


def read(text: str) -> Infotext:
    """The parts of an infotext, whoever wrote it. A text without parameters is a prompt."""
    from . import metadata
    from .foreign import read_foreign  # both are built on this module

    text = text[:MAX_LENGTH].lstrip("\ufeff")
    head, _, last = text.rstrip().rpartition("\n")
    if last.startswith("Steps:"):
        found = pairs(last)
        if any(key == "Version" and value.startswith(OURS) for key, value, _ in found):
            converted = head.endswith("\r")  # a file or a mail has changed all line breaks
            return with_prompts(*_prompts(head.replace("\r\n", "\n") if converted else head), found)
    return metadata.read(text) or read_foreign(text)


def with_prompts(prompt: str, negative: str, found: Iterable[Pair]) -> Infotext:
    """An infotext of its prompts and pairs; prompts among the pairs win, see `write`."""
    fields = as_fields(found)
    return Infotext(fields.pop("Prompt", prompt), fields.pop("Negative prompt", negative), fields)


def _prompts(head: str) -> tuple[str, str]:
    """What stands before the line of parameters, to the letter."""
    prompt, found, negative = f"\n{head}".removesuffix("\r").partition(f"\n{NEGATIVE}")
    return prompt[1:], negative.removeprefix(" ") if found else ""


def write(prompt: str, negative_prompt: str, params: Mapping[str, Any]) -> str:
    """The infotext with these prompts and parameters; those that are None are left out.

    Where a prompt would not be read back as it is, since it says "Negative prompt:" itself, it stands once more among
    the parameters, in quotes. The WebUI takes it from its usual place: there such a line joins the one before, or has
    an invisible blank in front.
    """
    entries = [f"{' '.join(key.split())}: {quote(value)}" for key, value in params.items() if value is not None]
    plain, negative = (_INNER_NEGATIVE.sub(" ", text) for text in (prompt, negative_prompt))
    plain = f"\u200b{plain}" if plain.lstrip().startswith(NEGATIVE) else plain
    head = f"{plain}\n{NEGATIVE} {negative}\n" if negative else f"{plain}\n"
    text = (head if plain else head[1:]) + ", ".join(entries)
    found = read(text)
    lost = [
        f"{key}: {json.dumps(wanted, ensure_ascii=False)}"
        for key, wanted, got in (
            ("Prompt", prompt, found.prompt),
            ("Negative prompt", negative_prompt, found.negative_prompt),
        )
        if wanted != got
    ]
    return ", ".join([text, *lost])
