"""What the model is told about a picture while it trains."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from typing import TYPE_CHECKING

from lib_methods.dreambooth.settings import TrainingSettings

if TYPE_CHECKING:
    from lib_methods.dreambooth.photos import Photo

MAX_CAPTION_BYTES = 64 * 1024
_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_FOREIGN = 0.4  # of the letters: Western languages have fewer with accents, other encodings nearly all
_JSON_KEYS = ("caption", "text", "prompt", "description", "tags")


def caption_of(photo: Photo | None, settings: TrainingSettings) -> str:
    """The text for a photo, or with None for a picture of the class.

    A photo without a caption of its own is "a [identifier] [class noun]", as in the paper. In a caption `{subject}`
    becomes identifier and noun. One that says neither that nor the identifier gets the identifier before the noun's
    first occurrence, or else the subject at its start.
    """
    if photo is None:
        return settings.class_prompt.strip() or f"a {settings.class_noun.strip()}"
    if not settings.captions or not photo.caption:
        return f"a {settings.subject}"
    return with_subject(photo.caption, settings)


def with_subject(text: str, settings: TrainingSettings) -> str:
    """A text that names the subject, see `caption_of`. Done twice it changes nothing more."""
    if "{subject}" in text:
        return text.replace("{subject}", settings.subject)
    if settings.identifier.strip() and _word(settings.identifier).search(text):
        return text
    noun = _word(settings.class_noun).search(text)
    if noun is None:
        return f"{settings.subject}, {text}"
    return f"{text[: noun.start()]}{settings.identifier} {noun[0]}{text[noun.end() :]}" if settings.identifier else text


def caption_text(data: bytes, *, json_file: bool = False) -> str | None:
    """The text of a caption file, see `read_caption`. json_file: an object with a caption, prompt or tags, or a list of
    tags. None where it cannot be read."""
    if not json_file:
        return read_caption(data)
    try:
        content = json.loads(_decoded(data) or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        content = next((content[key] for key in _JSON_KEYS if content.get(key)), "")
    if isinstance(content, list):
        content = ", ".join(tag for tag in content if isinstance(tag, str))
    return _one_line(content) if isinstance(content, str) else None


def read_caption(data: bytes) -> str | None:
    """The text of a caption file in UTF-8, UTF-16 or UTF-32 with or without a mark in front, or in Windows-1252: one
    line, no control characters, may be empty. None where it is in another encoding."""
    text = _decoded(data)
    return None if text is None else _one_line(text)


def _decoded(data: bytes) -> str | None:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if data and len(data) % 2 == 0 and data[first::2].count(0) > len(data) // 4:  # mostly Latin letters
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    letters = [letter for letter in text if not letter.isspace()]
    foreign = sum(not letter.isascii() for letter in letters)
    return None if foreign > _FOREIGN * len(letters) else text


def _one_line(text: str) -> str:
    plain = "".join(" " if unicodedata.category(letter) in _UNSEEN else letter for letter in text)
    return " ".join(plain.split())


def _word(text: str) -> re.Pattern[str]:
    """The word or words of a text on their own, in either case, with any space between."""
    inner = r"\s+".join(re.escape(part) for part in text.split())
    return re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)
