"""Settings to infotext, and what a control of the page takes from a pasted one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lib_methods.webui.arguments import format_number


class PasteKey(str):
    """An infotext key that also reads its control's value out of the parsed fields.

    Hosts take either a key or a function for a control. As a string it is what "Send to img2img" compares; as a
    function it gives the value its type (plain keys turn "off" into True), its default where the key is missing, and
    foreign infotexts their meaning.
    """

    read: Callable[[Mapping[str, Any]], Any]

    def __new__(cls, key: str, read: Callable[[Mapping[str, Any]], Any]) -> PasteKey:
        made = super().__new__(cls, key)
        made.read = read
        return made

    def __call__(self, fields: Mapping[str, Any]) -> Any:
        return self.read(fields)


def paste_keys(
    controls: Iterable[str],
    keys: Mapping[str, str],
    enabled_key: str,
    values: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> tuple[PasteKey, ...]:
    """One key per control, in the order of `controls`.

    keys: the infotext key of each control; `enabled_key` is for the switch, which has none. values: the value of every
    control for parsed fields.
    """

    def reader(control: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda fields: values(fields)[control]

    return tuple(PasteKey(keys.get(control, enabled_key), reader(control)) for control in controls)


def written(
    keys: Mapping[str, str],
    values: Mapping[str, Any],
    usual: Mapping[str, Any],
    main: str | None = None,
    switch: tuple[str, str] = ("False", "True"),
) -> dict[str, str]:
    """The infotext of a method: what differs from its default, in the order of `keys`.

    usual: the defaults. main: written where nothing differs, since a method without any key was off. switch: the words
    for off and on.
    """
    chosen = [name for name in keys if name in values and values[name] != usual[name]] or ([main] if main else [])
    return {keys[name]: _text(keys[name], values[name], switch) for name in chosen}


def _text(key: str, value: Any, switch: tuple[str, str]) -> str:
    if isinstance(value, bool):
        return switch[value]
    if not isinstance(value, str):
        return format_number(value)
    if value == key:
        return f"{value} "  # the WebUI writes a value that is its own key as a word without meaning
    # hosts quote commas, colons and line breaks, but take a text that begins with a quote for a quoted one
    return json.dumps(value, ensure_ascii=False) if value.startswith('"') else value


def found(keys: Mapping[str, str], fields: Mapping[str, Any]) -> dict[str, str]:
    """What an infotext says of a method, as text by control; `written` the other way.

    fields: as the host parsed them. The WebUI takes any "4x4" for a size, and makes two fields of it.
    """
    texts: dict[str, str] = {}
    for name, key in keys.items():
        sides = fields.get(f"{key}-1"), fields.get(f"{key}-2")
        if key in fields:
            texts[name] = _unwrapped(str(fields[key]))
        elif None not in sides:
            texts[name] = "x".join(map(str, sides))
    return texts


def _unwrapped(text: str) -> str:
    try:
        return str(json.loads(text)) if text.startswith('"\\"') else text
    except ValueError:
        return text
