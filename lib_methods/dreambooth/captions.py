"""What the model is told about a picture while it trains."""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import TYPE_CHECKING

from lib_methods.dreambooth.settings import TrainingSettings

if TYPE_CHECKING:
    from lib_methods.dreambooth.photos import Photo

MAX_CAPTION_BYTES = 64 * 1024


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


def read_caption(data: bytes) -> str:
    """The text of a caption file: UTF-8 or UTF-16 with or without a mark in front, else Latin-1. One line, no control
    characters, may be empty."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    plain = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    return " ".join(plain.split())


def _word(text: str) -> re.Pattern[str]:
    """The word or words of a text on their own, in either case, with any space between."""
    inner = r"\s+".join(re.escape(part) for part in text.split())
    return re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)
