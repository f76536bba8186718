"""A method's earlier name: requests, infotexts and saved defaults under it keep their meaning."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_methods.checks import SettingsError, check_switch

if TYPE_CHECKING:
    from lib_methods.webui.table import Table


@dataclass(frozen=True)
class Former:
    """What a method was called, and how it was asked for.

    title: the method's then. names: of its controls, the switch first: the order of a list in a request.
    today: what fields of these names meant, in today's names. script: the file of its script, by which the WebUI keeps
    saved defaults. labels: on the page, where they differ from today's. defaults: likewise.
    peers: titles of other extensions' scripts that take the same list.
    """

    title: str
    names: tuple[str, ...]
    today: Callable[[Mapping[str, Any]], dict[str, Any]]
    script: str
    labels: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ()

    def request(self, arguments: Sequence[Any]) -> list[Any]:
        """A request's arguments under the earlier name, as they would be under today's."""
        from lib_methods.webui.table import named_fields

        return [{"enabled": False, **self.today(named_fields(arguments, self.names, self.title))}]

    def keys(self, table: Table) -> dict[str, str]:
        """The infotext keys of then, by today's names."""
        return {name: self.title + key.removeprefix(table.title) for name, key in table.keys.items()}

    def saved(self, table: Table, file: Path, tab: str) -> dict[str, Any]:
        """The defaults that somebody saved for a tab, in today's fields; none where nobody changed one.

        file: the WebUI's ui-config.json, which also holds every default that nobody changed.
        """
        try:
            config = dict(json.loads(file.read_text("utf-8")))
        except (OSError, TypeError, ValueError):
            return {}
        usual = {"enabled": False, **table.defaults, **self.defaults}
        found = {}
        for name in self.names:
            label = self.labels.get(name) or (self.title if name == "enabled" else table[name].label)
            value = config.get(f"customscript/{self.script}/{tab}/{label}/value")
            if value is not None:
                found[name] = value
        if all(usual[name] == value for name, value in found.items()):
            return {}
        kept = {}
        for name, value in self.today(found).items():
            with contextlib.suppress(SettingsError):  # somebody may have edited the file
                kept[name] = check_switch(name, value) if name == "enabled" else table[name].check(value)
        return kept
