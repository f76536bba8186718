"""The folders of the host and of its extensions, set before any script is loaded, and lists of what is in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = re.compile(r"(\d+)")
modules_path = str(Path(__file__).resolve().parents[1] / "modules")
script_path = str(Path(__file__).resolve().parents[1])
data_path = script_path
models_path = os.path.join(script_path, "models")
extensions_dir = os.path.join(data_path, "extensions")
extensions_builtin_dir = os.path.join(script_path, "extensions-builtin")
default_output_dir = os.path.join(data_path, "outputs")
cwd = os.getcwd()
extensions: list[Extension] = []


def configure(data_dir: Path, output_dir: Path) -> None:
    """Sets where the host keeps its settings (`data_dir`) and its images (`output_dir`); makes both folders."""
    global data_path, extensions_dir, default_output_dir, models_path
    data_dir.mkdir(parents=True, exist_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    data_path, default_output_dir = str(data_dir), str(output_dir)
    extensions_dir = os.path.join(data_path, "extensions")
    models_path = os.path.join(data_path, "models")


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


@dataclass(eq=False)
class Extension:
    """One folder with `scripts/`, and possibly `javascript/` and `style.css`."""

    name: str
    path: str
    enabled: bool = True
    is_builtin: bool = False
    metadata: object = None

    def __post_init__(self) -> None:
        self.canonical_name = self.name.lower()
        self.status = self.version = ""

    def list_files(self, subdir: str, extension: str) -> list[Path]:
        """Files in `subdir` whose names end in `extension`, sorted."""
        folder = Path(self.path) / subdir
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() == extension)


def active() -> list[Extension]:
    """The extensions in use."""
    return [extension for extension in extensions if extension.enabled]


def find_extension(filename: str) -> Extension | None:
    """The extension that the file belongs to, or None."""
    parents = Path(os.path.abspath(filename)).parents
    return next((extension for extension in extensions if Path(os.path.abspath(extension.path)) in parents), None)


def installed_extensions(data_dir: Path) -> list[Path]:
    """The folders with scripts or translations in `extensions` of the data folder, by name, this repository aside."""
    own = Path(script_path).resolve().parent
    found = sorted((data_dir / "extensions").glob("*/"), key=lambda path: path.name.lower())
    return [
        path
        for path in found
        if path.resolve() != own and any((path / part).is_dir() for part in ("scripts", "localizations"))
    ]


def use_extensions(folders: list[Path]) -> None:
    """Sets the extensions to `folders`, in their order."""
    extensions.clear()
    extensions.extend(Extension(folder.resolve().name, str(folder.resolve())) for folder in folders)
