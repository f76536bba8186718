"""A script's arguments, from a page or a REST request, as named fields."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lib_methods.checks import SettingsError, check_switch


def named_fields(arguments: Sequence[Any], controls: Sequence[str], method: str) -> dict[str, Any]:
    """Arguments by name, without those that are None.

    Args:
        arguments: values in the order of `controls`; a dict in the first place holds named fields, which win over the
            values and switch the method on unless "enabled" is among them.
        controls: the names of the script's controls, "enabled" first.
        method: the script's title, for the sentences.

    Raises:
        SettingsError: not a list, too long, or a field that the method does not have.
    """
    if isinstance(arguments, (str, bytes, Mapping)) or not isinstance(arguments, Sequence):
        raise SettingsError(
            '"args" must be a list: the values of the controls in order, or one object of named fields.'
        )
    if len(arguments) > len(controls):
        raise SettingsError(
            f'"args" holds {len(arguments)} values; {method} has {len(controls)} controls: {", ".join(controls)}.'
        )
    named = {name: value for name, value in zip(controls, arguments) if value is not None}
    first = arguments[0] if arguments else None
    if isinstance(first, Mapping):
        refuse_unknown(first, controls, f"{method} has")
        named["enabled"] = True  # who sends fields wants them used; "enabled": false among them still wins
        named.update({name: value for name, value in first.items() if value is not None})
    return named


def request_fields(
    arguments: Sequence[Any], controls: Sequence[str], method: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The named fields of a request without the switch; None where the method is switched off.

    overrides: fields set from elsewhere (X/Y/Z plot), "enabled" perhaps among them; they win over everything.

    Raises:
        SettingsError: see `named_fields`, or the switch is neither true nor false.
    """
    named = {**named_fields(arguments, controls, method), **(overrides or {})}
    return named if check_switch('"enabled"', named.pop("enabled", False)) else None


def refuse_unknown(named: Mapping[Any, Any], known: Collection[str], subject: str) -> None:
    """Raise `SettingsError` at the first name that is not known, with the nearest one that is."""
    for name in named:
        if name not in known:
            shown = str(name)[:40]
            close = difflib.get_close_matches(shown, known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(sorted(known))}."
            raise SettingsError(f'{subject} no field "{shown}"; {hint}')


def format_number(value: float) -> str:
    """The shortest text that reads back as the same number; 1.0 becomes "1"."""
    return repr(float(value)).removesuffix(".0")
