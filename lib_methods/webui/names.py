"""Names that people give to what they keep."""

from __future__ import annotations

import unicodedata

from lib_methods.checks import SettingsError

MAX_NAME = 80
_HIDDEN = ("Cc", "Cs", "Cf", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # invisible, but part of Indic and Arabic words and of emoji


def seen(text: str) -> str:
    """The text without the characters that cannot be seen: control characters, marks of direction, lone surrogates.

    Characters that this version of Unicode does not know yet stay, as do the joiners.
    """
    return "".join(c for c in text if c in _JOINERS or unicodedata.category(c) not in _HIDDEN)


def clean_name(name: object, what: str, error: type[SettingsError]) -> str:
    """The name as it is kept: NFC, outer blanks removed, 1 to 80 characters that can be seen.

    what: is named so, for the sentences: "preset". Raises `error` for another.
    """
    clean = unicodedata.normalize("NFC", name).strip() if isinstance(name, str) else ""
    if not clean:
        raise error(f"Give the {what} a name.")
    if len(clean) > MAX_NAME:
        raise error(f"The {what}'s name is too long. Use at most {MAX_NAME} characters.")
    if seen(clean) != clean:
        raise error(f"The {what}'s name contains invisible characters. Remove them.")
    return clean
