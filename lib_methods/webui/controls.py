"""A method's controls. Each is declared once, as a field of the method's settings:

    @dataclass(frozen=True)
    class Settings:
        strength: float = slider(0.8, 0, 2, 0.05, "Strength", "how much the images count", axis="Strength")

        def __post_init__(self) -> None:
            check(self)

`lib_methods.webui.table.Table` makes the request, the infotext, the plot's axes and the docs from these;
`lib_methods.webui.widgets` the controls on the page. The order of the fields is that of positional API arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from lib_methods.checks import SettingsError, check_choice, check_number, check_switch

if TYPE_CHECKING:
    from lib_methods.pictures.store import ImageStore

_SWITCH = {"True": True, "on": True, "enable": True, "False": False, "off": False, "disable": False}


@dataclass(frozen=True)
class Old:
    """An infotext key of an earlier version or of another extension. read: its text as our key would have it."""

    key: str
    read: Callable[[str], str] = str


@dataclass(frozen=True)
class Images:
    """How images are named: a line of hashes on the page and in the infotext, anything that can be read as an image in
    a request.

    read: from a request's value, or a settings' own, to the settings' value; images that come along are kept in the
    store, with None only hashes are accepted. line: the settings' value as a line of hashes. kind: what sentences call
    one that is not there; empty if the method looks for those itself.
    """

    read: Callable[[Any, ImageStore | None], Any]
    line: Callable[[Any], str] = str
    kind: str = "image"


@dataclass(frozen=True)
class Control:
    """One control of a method, made by the functions below, whose names are the kinds.

    default: of the settings' field.
    label, help: on the page. about: what it does, for the docs; `help` if empty.
    low, high, step, whole: of numbers. end: of a slider that does not go as far as `high`.
    choices: of a radio or a dropdown. longest, example, lines: of texts.
    subject: what sentences call it; the label if empty.
    key: its infotext key without the method's title; the name with blanks if empty, None if it is not written.
    old: keys of earlier versions and of other extensions that are read.
    always: written even where it has its default.
    axis: its label on the X/Y/Z plot; empty if it is not there.
    important: stands above the others, which are to tinker with.
    kept: the WebUI may remember its value as the user's default.
    name: the API's; the field's if empty. attribute: the field.
    """

    kind: str
    default: Any
    label: str
    help: str = ""
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    end: float = 0.0
    whole: bool = False
    choices: tuple[str, ...] = ()
    longest: int = 0
    example: str = ""
    lines: int = 1
    images: Images | None = None
    about: str = ""
    subject: str = ""
    key: str | None = ""
    old: tuple[str | Old, ...] = ()
    always: bool = False
    axis: str = ""
    important: bool = False
    kept: bool = True
    name: str = ""
    attribute: str = ""

    @property
    def first(self) -> Any:
        """What the page's control holds at first."""
        return self.show(self.default)

    def show(self, value: Any) -> Any:
        """A value of the settings as the page and the API have it."""
        return self.images.line(value) if self.images else value

    def check(self, value: Any) -> Any:
        """The value as the settings keep it. Raises `SettingsError` with a sentence that names the control."""
        subject = self.subject or self.label
        if self.images is not None:
            return self.images.read(value, None)
        if self.kind == "checkbox":
            return check_switch(subject, value)
        if self.choices:
            return check_choice(subject, value, self.choices)
        if self.kind == "text":
            return _check_text(subject, value, self.longest)
        if not self.whole:
            return check_number(subject, value, self.low, self.high)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not self.low <= value <= self.high:
            raise SettingsError(f"{subject} must be a whole number from {self.low:.0f} to {self.high:.0f}.")
        return int(value)

    def parse(self, text: str) -> Any:
        """A value from an infotext. Raises ValueError (`SettingsError` is one), KeyError or OverflowError."""
        if self.images is not None:
            return self.show(self.check(text))
        if self.kind == "checkbox":
            return _SWITCH[text]
        return self.check(text if self.choices or self.kind == "text" else float(text))

    def older(self, given: Any) -> str | None:
        """The text under the first of the old keys that an infotext's fields have, as our own key would have it."""
        for old in (entry if isinstance(entry, Old) else Old(entry) for entry in self.old):
            if given.get(old.key) is not None:
                try:
                    return old.read(str(given[old.key]))
                except ValueError:
                    return None
        return None


def _check_text(subject: str, value: Any, longest: int) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{subject} must be text.")
    if len(value) > longest:
        raise SettingsError(f"{subject} is longer than {longest} characters.")
    return value.strip()


@cache
def controls_of(settings: Any) -> tuple[Control, ...]:
    """The controls of a settings class, in order."""
    declared = [(part.name, part.metadata["control"]) for part in fields(settings) if "control" in part.metadata]
    return tuple(replace(control, name=control.name or name, attribute=name) for name, control in declared)


def check(settings: Any) -> None:
    """Check every control of a frozen settings object and keep the values as they are meant; for `__post_init__`."""
    for control in controls_of(settings.__class__):
        object.__setattr__(settings, control.attribute, control.check(getattr(settings, control.attribute)))


class Span:
    """Settings that guide a share of the sampling steps, from `start` to `end`, 0 to 1."""

    start: float
    end: float

    def check_span(self) -> None:
        """Refuse a share that ends before it begins."""
        if self.start > self.end:
            raise SettingsError(
                f"Start ({self.start:g}) is after End ({self.end:g}): no step would be guided. Swap them."
            )

    def guided_steps(self, steps: int) -> tuple[int, int]:
        """First guided step and the one after the last, counted from 0."""
        return round(self.start * steps), round(self.end * steps)


def slider(
    default: float,
    low: float,
    high: float,
    step: float,
    label: str,
    help: str = "",
    *,
    whole: bool = False,
    **more: Any,
) -> Any:
    """A number from `low` to `high`."""
    return _field(Control("slider", default, label, help, low, high, step, whole=whole, **more))


def number(
    default: float, low: float, high: float, label: str, help: str = "", *, whole: bool = False, **more: Any
) -> Any:
    """A number from `low` to `high` in a box, for ranges too wide for a slider."""
    return _field(Control("number", default, label, help, low, high, whole=whole, **more))


def checkbox(default: bool, label: str, help: str = "", **more: Any) -> Any:
    """On or off."""
    return _field(Control("checkbox", default, label, help, **more))


def radio(default: str, choices: Sequence[str], label: str, help: str = "", **more: Any) -> Any:
    """One of a few."""
    return _field(Control("radio", default, label, help, choices=tuple(choices), **more))


def dropdown(default: str, choices: Sequence[str], label: str, help: str = "", **more: Any) -> Any:
    """One of many."""
    return _field(Control("dropdown", default, label, help, choices=tuple(choices), **more))


def text(label: str, help: str = "", example: str = "", *, longest: int, default: str = "", **more: Any) -> Any:
    """A line of text without blanks around it, at most `longest` characters."""
    return _field(Control("text", default, label, help, longest=longest, example=example, **more))


def stored_images(default: Any, kind: Images, label: str, help: str = "", **more: Any) -> Any:
    """Images by hash, in a box that is hidden: what shows them and takes them in is the method's."""
    return _field(Control("images", default, label, help, images=kind, **more))


def _field(control: Control) -> Any:
    return field(default=control.default, metadata={"control": control})
