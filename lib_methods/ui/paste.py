"""What a control of the page takes from a pasted infotext."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
