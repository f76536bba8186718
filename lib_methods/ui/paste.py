"""What a control of the page takes from a pasted infotext."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


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
