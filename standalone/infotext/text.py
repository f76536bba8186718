"""Infotext as text: prompts, then one line of "key: value" pairs, in the form of the WebUI v1.10.1.

What `write` makes, `read` gives back exactly, and the WebUI reads it too. Reading never raises and takes time in
proportion to the text's length. JSON, texts that others wrote, or that lost their line breaks on the way, are
`foreign.py`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .foreign import OBJECT, UNREAD, read_foreign, read_metadata
from .pairs import NEGATIVE, Infotext, pairs, quote, with_prompts

MAX_LENGTH = 1_000_000
"""Letters; no host writes a tenth of this."""
OURS = "steer-"
"""What "Version" begins with where this host wrote the text: its prompts keep every blank and line break."""

_INNER_NEGATIVE = re.compile(rf"\n[^\S\n]*(?={NEGATIVE})")
_CHUNKS = ("invokeai_metadata", "sui_image_params", "sd-metadata", "prompt", "workflow")


def read(text: str) -> Infotext:
    """The parts of an infotext, whoever wrote it. A text without parameters is a prompt."""
    text = text[:MAX_LENGTH].lstrip("\ufeff")
    head, _, last = text.rstrip().rpartition("\n")
    if last.startswith("Steps:"):
        found = pairs(last)
        if any(key == "Version" and value.startswith(OURS) for key, value, _ in found):
            converted = head.endswith("\r")  # a file or a mail has changed all line breaks
            return with_prompts(*_prompts(head.replace("\r\n", "\n") if converted else head), found)
    return read_metadata(text) or read_foreign(text)


def _prompts(head: str) -> tuple[str, str]:
    """What stands before the line of parameters, to the letter."""
    prompt, found, negative = f"\n{head}".removesuffix("\r").partition(f"\n{NEGATIVE}")
    return prompt[1:], negative.removeprefix(" ") if found else ""


def write(prompt: str, negative_prompt: str, params: Mapping[str, Any]) -> str:
    """The infotext with these prompts and parameters; those that are None are left out.

    Where a prompt would not be read back as it is, since it says "Negative prompt:" itself, it is repeated among
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


def infotext_of(infotext: str | None, items: Mapping[str, Any]) -> str | None:
    """An image's infotext in the usual form, where its texts `items` hold parameters in JSON; else as it is."""
    words = infotext
    if items.get("Software") == "NovelAI" and isinstance(items.get("Comment"), str):
        words = _with_description(items["Comment"], items.get("Description"))
    elif infotext is None:
        chunks = (items.get(key) for key in _CHUNKS)
        words = next((chunk for chunk in chunks if isinstance(chunk, str) and OBJECT.match(chunk.lstrip())), None)
    found = read_metadata(words) if words is not None else None
    if found is None:
        return infotext
    if UNREAD in found.fields:
        return infotext or words
    fields: dict[str, Any] = dict(found.fields)
    width, height = fields.pop("Size-1", None), fields.pop("Size-2", None)
    fields["Size"] = f"{width}x{height}" if width and height else None
    if items.get("Software") == "NovelAI":
        fields |= {"Clip skip": 2, "ENSD": 31337}  # as its models are run, says the WebUI
    return write(found.prompt, found.negative_prompt, {"Steps": fields.pop("Steps", None), **fields})


def _with_description(comment: str, description: Any) -> str:
    """NovelAI's parameters with their prompt, which older images store in a separate text."""
    try:
        found = json.loads(comment)
    except (ValueError, RecursionError):
        return comment
    if not isinstance(found, dict) or "prompt" in found or not isinstance(description, str):
        return comment
    return json.dumps({"prompt": description, **found})
