"""The extension folders whose scripts the host loads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

extensions: list[Extension] = []


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


def use_folders(folders: list[Path]) -> None:
    """Sets the extensions to `folders`, in their order."""
    extensions.clear()
    extensions.extend(Extension(folder.resolve().name, str(folder.resolve())) for folder in folders)
