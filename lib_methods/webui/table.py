"""Everything made from a method's controls: request, infotext, paste fields, and a table for the docs.

Standard library only until images are asked for, as commands show their options before anything is installed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lib_methods.checks import SettingsError, check_switch, refuse_unknown
from lib_methods.webui.controls import Control, controls_of
from lib_methods.webui.former import Former

if TYPE_CHECKING:
    from lib_methods.pictures.store import ImageStore


@dataclass(frozen=True)
class Table:
    """All controls of a method, and the settings they make.

    title: the method's; its infotext keys begin with it. settings: a dataclass whose fields are controls. Of its
    objects, `unused` is asked for the names of controls that change nothing and are not written. switch: the words for
    off and on in the infotext. main: the control that is written where nothing differs from its default; without a
    key the method was off. is_old: whether an infotext without our keys has old ones that are meant for us.
    lists: whether the API takes the controls as a list, too.
    unsaid: what an infotext means by leaving a control out, or by a text that is no value of it, where that is not its
    default: asked with its texts by control, and whether they come from old keys.
    former: the method's earlier name.
    """

    title: str
    settings: Any
    switch: tuple[str, str] = ("False", "True")
    main: str = ""
    lists: bool = True
    is_old: Callable[[Mapping[str, Any]], bool] = lambda fields: False
    unsaid: Callable[[Mapping[str, str], bool], Mapping[str, Any]] = lambda texts, is_old: {}
    former: Former | None = None

    @property
    def controls(self) -> tuple[Control, ...]:
        return controls_of(self.settings)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The switch, and every control: the order of the page's values and of positional API arguments."""
        return ("enabled", *(control.name for control in self.controls))

    @cached_property
    def keys(self) -> dict[str, str]:
        """The infotext key of every control that is written."""
        return {
            control.name: f"{self.title} {control.key or control.name.replace('_', ' ')}"
            for control in self.controls
            if control.key is not None
        }

    @property
    def error_key(self) -> str:
        """The infotext key of the sentence why a job went without the method."""
        return f"{self.title} error"

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """What every control holds at first."""
        return {control.name: control.first for control in self.controls}

    def __getitem__(self, name: str) -> Control:
        return next(control for control in self.controls if control.name == name)

    def values(self, settings: Any) -> dict[str, Any]:
        """The value of every control for these settings."""
        return {control.name: control.show(getattr(settings, control.attribute)) for control in self.controls}

    def request(
        self, arguments: Sequence[Any], store: ImageStore | None = None, *, overrides: Mapping[str, Any] | None = None
    ) -> Any:
        """The settings that a page or an API call asks for; None where the method is switched off.

        Args:
            arguments: values in the order of `names`; a dict in the first place holds named fields, which win. None
                stands for the default.
            store: where images are looked up, and where those that were sent along are kept.
            overrides: fields set from elsewhere (X/Y/Z plot), "enabled" perhaps among them; they win over everything.

        Raises:
            SettingsError: the sentence names the field. `StoreError` of the image store is one, too.
        """
        named = {**named_fields(arguments, self.names, self.title), **(overrides or {})}
        if not check_switch('"enabled"', named.pop("enabled", False)):
            return None
        from lib_methods.pictures.store import check_there

        settings = self.settings_from(named, store.for_request() if store is not None else None)
        for control in self.controls:
            if store is not None and control.images is not None and control.images.kind:
                for name in control.show(getattr(settings, control.attribute)).split():
                    check_there(store, name, control.images.kind)
        return settings

    def settings_from(self, named: Mapping[str, Any], store: ImageStore | None = None) -> Any:
        """Settings from named fields with JSON values; fields left out or None keep their default."""
        refuse_unknown(named, self.names[1:], f"{self.title} has")
        values = {}
        for control in self.controls:
            value = named.get(control.name)
            if value is not None:
                values[control.attribute] = control.images.read(value, store) if control.images else value
        return self.settings(**values)

    def to_infotext(self, settings: Any, store: ImageStore | None = None) -> dict[str, str]:
        """The method's part of an infotext: what differs from the defaults.

        store: where the images are; their hashes are shortened as far as that allows.
        """
        values, unused = self.values(settings), getattr(settings, "unused", ())
        chosen = [
            control
            for control in self.controls
            if control.name in self.keys
            and control.name not in unused
            and (control.always or values[control.name] != control.first)
        ]
        written = {}
        for control in chosen or ([self[self.main]] if self.main else []):
            value = values[control.name]
            if control.images:
                from lib_methods.pictures.store import short_names

                value = short_names(value, store)
            written[self.keys[control.name]] = _text(self.keys[control.name], value, self.switch)
        return written

    def from_infotext(
        self, fields: Mapping[str, Any], store: ImageStore | None = None, *, old: bool = True
    ) -> dict[str, Any]:
        """The value of every control for a pasted infotext; None leaves the control as it is.

        An infotext without the method switches it off and touches nothing else. A field that cannot be read counts as
        left out. store: where the images are looked up. old: read old keys, too.
        """
        texts, is_old = dict(_found(self.keys, fields)), False
        if not texts and self.former is not None:
            texts = dict(_found(self.former.keys(self), fields))
            is_old = bool(texts)
        from lib_methods.pictures.store import whole_names

        if not texts and old and self.is_old(fields):
            is_old = True
            texts = {control.name: text for control in self.controls if (text := control.older(fields)) is not None}
        elif not texts:
            return {"enabled": False, **dict.fromkeys(self.names[1:])}
        values: dict[str, Any] = {"enabled": True, **self.defaults, **self.unsaid(texts, is_old)}
        for control in self.controls:
            if control.name in texts:
                # one by one; whether they go together is checked where they are used
                with contextlib.suppress(ValueError, KeyError, OverflowError):
                    value = control.parse(texts[control.name])
                    values[control.name] = whole_names(value, store) if control.images else value
        return values

    def paste_keys(
        self, store: ImageStore | None = None, old: Callable[[], bool] = lambda: True
    ) -> tuple[PasteKey, ...]:
        """One key per control, in the order of `names`. old: asked at each pasting whether old keys are meant for us.

        The switch has no key of its own: pasting derives it from the others; from tab to tab it goes by the title.
        """

        def reader(name: str) -> Callable[[Mapping[str, Any]], Any]:
            return lambda fields: self.from_infotext(fields, store, old=old())[name]

        unwritten = {name: f"{self.title} {name.replace('_', ' ')}" for name in self.names[1:]}
        keys = {"enabled": self.title, **unwritten, **self.keys}
        return tuple(PasteKey(keys[name], reader(name)) for name in self.names)

    def markdown(self) -> str:
        """The controls as a table for the docs, the important ones first, and the API's order below."""
        ranked = sorted(self.controls, key=lambda control: not control.important)
        rows = [f"| {control.label} | {_values(control)} | {control.about or control.help} |" for control in ranked]
        head = ["| control | API field, values, **default** | what it does |", "|---|---|---|"]
        order = f"A list in the API has this order: {', '.join(f'`{name}`' for name in self.names)}."
        return "\n".join([*head, *rows, *(["", order] if self.lists else [])])


class PasteKey(str):
    """An infotext key that also reads its control's value out of the parsed fields.

    Hosts take either a key or a function for a control. As a string it is what "Send to img2img" compares; as a
    function it gives the value its type (plain keys turn "off" into True), its default where the key is missing, and
    old infotexts their meaning.
    """

    read: Callable[[Mapping[str, Any]], Any]

    def __new__(cls, key: str, read: Callable[[Mapping[str, Any]], Any]) -> PasteKey:
        made = super().__new__(cls, key)
        made.read = read
        return made

    def __call__(self, fields: Mapping[str, Any]) -> Any:
        return self.read(fields)


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


def format_number(value: float) -> str:
    """The shortest text that reads back as the same number; 1.0 becomes "1"."""
    return repr(float(value)).removesuffix(".0")


def _text(key: str, value: Any, switch: tuple[str, str]) -> str:
    if isinstance(value, bool):
        return switch[value]
    if not isinstance(value, str):
        return format_number(value)
    if value == key:
        return f"{value} "  # the WebUI writes a value that is its own key as a word without meaning
    # hosts quote commas, colons and line breaks, but take a text that begins with a quote for a quoted one
    return json.dumps(value, ensure_ascii=False) if value.startswith('"') else value


def _found(keys: Mapping[str, str], fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What an infotext says of a method, as text by control. The WebUI takes any "4x4" for a size, and makes two fields
    of it."""
    for name, key in keys.items():
        sides = fields.get(f"{key}-1"), fields.get(f"{key}-2")
        if key in fields:
            text = str(fields[key])
            with contextlib.suppress(ValueError):  # a text that begins with a quote was written as JSON
                text = str(json.loads(text)) if text.startswith('"\\"') else text
            yield name, text
        elif None not in sides:
            yield name, "x".join(map(str, sides))


def _values(control: Control) -> str:
    """The API's name, the values and the default: "`strength` 0 to 2, **0.8**"."""
    default = {True: "on", False: "off"}.get(control.default) if control.kind == "checkbox" else control.first
    if control.choices:
        if len(control.choices) > 6:
            return f"`{control.name}` **{default}** and {len(control.choices) - 1} others"
        span = " / ".join(f"**{choice}**" if choice == default else choice for choice in control.choices)
        return f"`{control.name}` {span}"
    if control.kind in ("slider", "number"):
        low, high, first = (format_number(value) for value in (control.low, control.high, control.default))
        return f"`{control.name}` {low} to {high}, **{first}**"
    if control.kind == "checkbox":
        return f"`{control.name}` **{default}**"
    return f"`{control.name}` {'images' if control.images else 'text'}"
