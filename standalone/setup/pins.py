"""Reads the pinned requirements, and tells whether an interpreter already has them."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_LINE = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;#]+)(?:\s*;\s*(?P<marker>[^#]+))?$")
_MARKER = re.compile(r"""^(?P<variable>python_version|sys_platform)\s*(?P<how>==|<|>=)\s*["'](?P<value>[^"']+)["']$""")


@dataclass(frozen=True)
class Pin:
    """One `name==version`."""

    name: str
    version: str


def _applies(marker: str | None) -> bool:
    """Whether a marker of one of the forms that requirements.txt uses holds here. ValueError for any other form."""
    if marker is None:
        return True
    found = _MARKER.match(marker.strip())
    if found is None:
        raise ValueError(f"a marker that is not understood: {marker.strip()}")
    if found["variable"] == "sys_platform":
        return sys.platform == found["value"]
    wanted = tuple(int(part) for part in found["value"].split("."))
    have = sys.version_info[: len(wanted)]
    return {"==": have == wanted, "<": have < wanted, ">=": have >= wanted}[found["how"]]


def _lines(path: Path) -> Iterator[str]:
    for raw in path.read_text(encoding="utf-8").splitlines():
        line = raw.strip()
        if line.startswith("-r "):
            yield from _lines(path.parent / line[3:].strip())
        elif line and not line.startswith("#"):
            yield line


def read_pins(path: Path) -> list[Pin]:
    """The pins of a requirements file and of those it includes, that apply to this interpreter."""
    pins = []
    for line in _lines(path):
        found = _LINE.match(line)
        if found is None:
            raise ValueError(f"{path.name}: a line that is not a pin: {line}")
        if _applies(found["marker"]):
            pins.append(Pin(found["name"], found["version"]))
    return pins


def fingerprint(path: Path) -> str:
    """SHA-256 over the lines of a requirements file and of those it includes."""
    return hashlib.sha256("\n".join(_lines(path)).encode()).hexdigest()


def installed_version(name: str) -> str | None:
    """The version of an installed package, without a local part such as "+cpu"; None when it is not there."""
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def missing(pins: list[Pin], version_of: Callable[[str], str | None] = installed_version) -> list[Pin]:
    """The pins that this interpreter does not have in exactly that version."""
    return [pin for pin in pins if version_of(pin.name) != pin.version]
