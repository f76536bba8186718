"""Small helpers that scripts import from the WebUI."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

_NUMBERS = re.compile(r"(\d+)")


def natural_sort_key(s: str, regex: re.Pattern[str] = _NUMBERS) -> list[int | str]:
    """A sort key that puts "a2" before "a10"."""
    return [int(part) if part.isdigit() else part.lower() for part in regex.split(s)]


def listfiles(dirname: str) -> list[str]:
    """Paths of the files in `dirname` that are not hidden, in natural order."""
    names = (name for name in sorted(os.listdir(dirname), key=natural_sort_key) if not name.startswith("."))
    return [path for path in (os.path.join(dirname, name) for name in names) if os.path.isfile(path)]


def walk_files(path: str, allowed_extensions: Sequence[str] | None = None) -> Iterator[str]:
    """All files under `path` in natural order, hidden folders aside; only those with one of the extensions."""
    for root, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted((d for d in folders if not d.startswith(".")), key=natural_sort_key)
        for name in sorted(files, key=natural_sort_key):
            if allowed_extensions is None or os.path.splitext(name)[1].lower() in allowed_extensions:
                yield os.path.join(root, name)


def topological_sort(dependencies: Mapping[str, Sequence[str]]) -> list[str]:
    """Keys of `dependencies` so ordered that each comes after those it names. Cycles are broken where met."""
    result: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in dependencies:
            return
        seen.add(name)
        for other in dependencies[name]:
            visit(other)
        result.append(name)

    for name in dependencies:
        visit(name)
    return result
