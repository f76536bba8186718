"""Checks that the methods' settings share, of the names people give, too; and the error that carries their sentence."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lib_methods.errors import UserError

MAX_NAME = 80
_HIDDEN = ("Cc", "Cs", "Cf", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # invisible, but part of Indic and Arabic words and of emoji


class SettingsError(UserError, ValueError):
    """A setting that cannot be used; the message says which and why in the user's words."""


def check_number(name: str, value: object, low: float, high: float) -> float:
    """The value as a float in [low, high]. Raises `SettingsError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{name} must be a number from {low:g} to {high:g}.")
    if not low <= value <= high:  # false for NaN, too
        raise SettingsError(f"{name} must be between {low:g} and {high:g}, not {value:g}.")
    return float(value)


def check_whole(name: str, value: object, low: int, high: int) -> int:
    """The value, if it is a whole number in [low, high]. Raises `SettingsError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"{name} must be a whole number.")
    if not low <= value <= high:
        raise SettingsError(f"{name} must be between {low} and {high}, not {value}.")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """The value, if it is one of the choices. Raises `SettingsError`."""
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(f"{name} must be one of: {', '.join(choices)}.")
    return value


def check_switch(name: str, value: object) -> bool:
    """The value, if it is true or false. Raises `SettingsError`."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} is either on or off (true or false).")
    return value


def refuse_unknown(named: Mapping[Any, Any], known: Collection[str], subject: str) -> None:
    """Raise `SettingsError` at the first name that is not known, with the nearest one that is."""
    for name in named:
        if name not in known:
            shown = str(name)[:40]
            close = difflib.get_close_matches(shown, known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(sorted(known))}."
            raise SettingsError(f'{subject} no field "{shown}"; {hint}')


def seen(text: str) -> str:
    """The text without the characters that cannot be seen: control characters, marks of direction, lone surrogates.

    Characters that this version of Unicode does not know yet stay, as do the joiners.
    """
    return "".join(c for c in text if c in _JOINERS or unicodedata.category(c) not in _HIDDEN)


def clean_name(name: object, what: str, error: type[SettingsError]) -> str:
    """The normalised name: NFC, stripped, 1 to 80 visible characters.

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
