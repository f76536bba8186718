"""Rules for settings: kind, range and choices, from their declarations alone."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.files import is_file_name
from standalone.engine import names

MOST_LETTERS = 10_000
DEEPEST = 16
INT64 = 2**63
_ENTRY = re.compile(r'^    (?=")', re.MULTILINE)


def storable(value: Any, depth: int = DEEPEST) -> bool:
    """Whether `value` can be written as JSON and read again by anyone: finite, no broken text, no deep nesting."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -INT64 <= value < INT64
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        whole = len(value) <= MOST_LETTERS and not any("\ud800" <= letter <= "\udfff" for letter in value)
        return whole and "\0" not in value
    if depth <= 0 or not isinstance(value, (dict, list, tuple)) or len(value) > MOST_LETTERS:
        return False
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return all(storable(item, depth - 1) for item in inner)


def as_text(value: Any) -> str:
    """`value` as a sentence may show it: short and printable."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within lists
        return "this value"
    text = names.shown(text).replace("\\", "?")
    return text if len(text) <= 60 else f"{text[:57]}..."


def folder_inside(value: str) -> str:
    """`value` if it names a folder within another on every system: "grids", "2024/july". Raises ValueError."""
    parts = re.split(r"[/\\]", value)
    if len(value) > 200 or (value and not all(map(is_file_name, parts))):
        raise ValueError("give the name of a folder inside the folder for outputs")
    return value


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"


class Rule:
    """What the value of a setting may be, by its default, its component, that one's arguments, and a check on top.

    `check` gets a value of the right kind and returns it as it is kept; it raises ValueError with what to give.
    """

    default: Any
    component: Any
    component_args: Any
    check: Callable[[Any], Any] | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the component; {} when they cannot be had now."""
        try:
            return dict((self.component_args() if callable(self.component_args) else self.component_args) or {})
        except Exception:
            return {}

    @property
    def choices(self) -> list[Any]:
        """The values that can be chosen; [] when any may be given."""
        arguments = self.arguments
        if arguments.get("allow_custom_value"):
            return []
        found = arguments.get("choices") or []
        return [choice[1] if isinstance(choice, (tuple, list)) else choice for choice in found]

    @property
    def kind(self) -> str:
        """switch, whole, number, text, list or any; by the default, or without one by the component."""
        component = getattr(self.component, "__name__", "")
        arguments = self.arguments
        several = component in ("CheckboxGroup", "DropdownMulti") or bool(arguments.get("multiselect"))
        if isinstance(self.default, (list, tuple)) or (self.default is None and several):
            return "list"
        if isinstance(self.default, bool) or (self.default is None and component == "Checkbox"):
            return "switch"
        if isinstance(self.default, (int, float)) and component in ("Radio", "Dropdown"):
            return "any"
        if isinstance(self.default, int):
            whole = float(arguments.get("step") or 1).is_integer()
            return "whole" if whole and (component != "Number" or arguments.get("precision") == 0) else "number"
        if isinstance(self.default, float) or (self.default is None and component in ("Slider", "Number")):
            return "number"
        if isinstance(self.default, str) or (self.default is None and component in ("Textbox", "Radio", "Dropdown")):
            return "text"
        return "any"

    def expected(self) -> str:
        """What a value must be, to finish the words "give ..."."""
        choices = self.choices
        if choices and self.kind != "list":
            return "one of: " + ", ".join(map(str, choices[:40]))
        if choices:
            return "a list of: " + ", ".join(map(str, choices[:40]))
        arguments = self.arguments
        low, high = arguments.get("minimum"), arguments.get("maximum")
        limits = f" from {_number(low)} to {_number(high)}" if low is not None and high is not None else ""
        return {
            "switch": "on or off (true or false)",
            "whole": f"a whole number{limits}",
            "number": f"a number{limits}",
            "text": "text",
            "list": "a list of texts",
        }.get(self.kind, "a value that can be saved")

    def checked(self, value: Any, name: str = "") -> Any:
        """`value` as the setting keeps it: whole numbers as int, choices as they are written. Raises SettingsError."""
        called = f"The setting '{name}'" if name else "The setting"
        try:
            found = self._of_kind(value)
            return found if self.check is None or (found is None and self.default is None) else self.check(found)
        except (ValueError, TypeError, OverflowError) as error:
            told = str(error) or f"give {self.expected()}"
            raise SettingsError(f"{called} cannot be {as_text(value)}: {told}.") from None

    def _of_kind(self, value: Any) -> Any:
        """ValueError for what is of another kind, out of range, or no choice."""
        if not storable(value) or (value is None and self.default is not None):
            raise ValueError
        kind = self.kind
        if value is None:
            return None
        if kind == "switch":
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise ValueError
            return bool(value)
        if kind in ("whole", "number"):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError
            return self._in_range(value, whole=kind == "whole")
        if kind == "text" and not isinstance(value, str):
            raise ValueError
        if kind == "list":
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, (str, int, float)) for item in value):
                raise ValueError
            return [self._chosen(item) for item in value]
        if kind == "any" and isinstance(self.default, dict) and not isinstance(value, dict):
            raise ValueError
        return self._chosen(value)

    def _in_range(self, value: float, whole: bool) -> float:
        if whole and value != int(value):
            raise ValueError
        arguments = self.arguments
        low, high = arguments.get("minimum"), arguments.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError
        return int(value) if whole else float(value) if isinstance(self.default, float) else value

    def _chosen(self, value: Any) -> Any:
        """The choice that `value` names."""
        choices = self.choices
        if not choices:
            return value
        for choice in choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        found = names.find(value, {choice: choice for choice in choices}) if isinstance(value, str) else None
        if found is None:
            raise ValueError
        return found


def entries(text: str) -> tuple[dict[str, Any], bool]:
    """What a file of settings says, and whether that is all of it."""
    try:
        found = json.loads(text)
        return (found, True) if isinstance(found, dict) else ({}, False)
    except (ValueError, RecursionError):
        pass
    # entry by entry, as `save` lays them out
    entries: dict[str, Any] = {}
    for part in _ENTRY.split(text)[1:]:
        with contextlib.suppress(ValueError, RecursionError):
            entries |= json.loads("{" + part.rstrip().rstrip("}").rstrip().rstrip(",") + "}")
    return entries, False
