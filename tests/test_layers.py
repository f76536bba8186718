"""The house's floors: no circles, no floor that imports a higher one, and methods that know no host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what is on `sys.path` when the host runs: `standalone/modules` is the package `modules`
ROOTS = ("lib_methods", "scripts", "standalone", "benchmarks")


def _name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[:2] == ["standalone", "modules"] else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(file): file for root in ROOTS for file in (ROOT / root).rglob("*.py")}


def _imports(file: Path, at_start: bool) -> Iterator[str]:
    """The modules that a file imports; at_start: while it is being imported itself, type checking aside."""
    package = _name(file).split(".")[: None if file.name == "__init__.py" else -1]

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    inside = f"{origin}.{alias.name}"
                    yield inside if inside in FILES else origin
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not at_start:
                    yield from walk(node.body)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and at_start:
                yield from walk(node.orelse)
            else:
                for name in ("body", "orelse", "finalbody"):
                    yield from walk(getattr(node, name, []))
                for handler in getattr(node, "handlers", []):
                    yield from walk(handler.body)

    yield from walk(ast.parse(file.read_text("utf-8")).body)


def _reaches(start: str, arrows: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself; empty where there is none."""
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop()
        for following in arrows[way[-1]]:
            if following == start:
                return [*way, start]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def test_no_file_imports_itself_in_a_circle() -> None:
    arrows = {name: set(_imports(file, True)) & FILES.keys() - {name} for name, file in FILES.items()}
    assert [way for name in arrows if (way := _reaches(name, arrows))] == []


METHODS = ("fabric", "image_cfg", "pix2pix_zero", "guiders", "nag")
FLOORS = (
    ("errors", "checks", "files", "guidance", "device"),
    ("denoiser",),
    ("attention",),
    ("pictures",),
    ("hosts",),
    ("webui",),
    (*METHODS, "jobs"),
    ("cascade",),
    ("dreambooth",),
)
"""The rooms of `lib_methods`, from low to high; what is in none of them is free."""


def test_no_floor_imports_a_higher_one() -> None:
    """At import time: what shows a method on the page asks the host when a job runs."""
    level = {f"lib_methods.{room}": number for number, rooms in enumerate(FLOORS) for room in rooms}

    def floor(module: str) -> int:
        return level.get(".".join(module.split(".")[:2]), -1)

    arrows = [(name, found) for name, file in FILES.items() if floor(name) >= 0 for found in _imports(file, True)]
    outside = ("standalone", "scripts", "benchmarks")
    assert [(a, b) for a, b in arrows if floor(b) > floor(a) or b.split(".")[0] in outside] == []


@pytest.mark.parametrize("method", METHODS)
def test_methods_do_not_import_each_other(method: str) -> None:
    others = set(METHODS) - {method}
    for file in (ROOT / "lib_methods" / method).rglob("*.py"):
        assert not [found for found in _imports(file, False) if set(found.split(".")[1:2]) & others]


def test_only_the_adapters_know_the_host() -> None:
    for name, file in FILES.items():
        if name.startswith("lib_methods.") and not name.startswith("lib_methods.hosts"):
            assert not [found for found in _imports(file, False) if found.split(".")[0] == "modules"], name
