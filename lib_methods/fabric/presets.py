"""Named FABRIC presets: likes, dislikes, their weights and all settings, each a JSON file in one folder.

File names are made from the preset's name, but never are the name: a readable part and a hash. So "../x", "CON", "a/b"
or "猫" are ordinary preset names on every system, and none leaves the folder.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lib_methods import checks
from lib_methods.checks import SettingsError
from lib_methods.errors import reason
from lib_methods.files import hashed_file_name, remove, replacing

from .settings import CONTROLS, FabricSettings

MAX_FILE_BYTES = 2**20
_STEM = re.compile(r"[a-z0-9_-]*-[0-9a-f]{16}")
_VERSION = 1


class PresetError(SettingsError):
    """A preset that cannot be saved, found or read; the message says why."""


def clean_name(name: object) -> str:
    """The normalised name, see `lib_methods.checks`. Raises `PresetError`."""
    return checks.clean_name(name, "preset", PresetError)


class PresetFolder:
    """Presets in `folder`, which is made when the first one is saved."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, name: str, settings: FabricSettings) -> str:
        """Keep `settings` under `name`, in place of an older preset of that name; returns the name as it is kept."""
        name = clean_name(name)
        content = {"fabric_preset": _VERSION, "name": name, "settings": CONTROLS.values(settings)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(name), shared=True) as file:
                file.write(json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8"))
        except OSError as error:
            raise PresetError(f"The preset cannot be saved. {reason(error)}") from None
        return name

    def load(self, name: str) -> FabricSettings:
        """The settings kept under `name`. Its images may be missing from the image store.

        Raises:
            PresetError: there is no such preset, or its file is damaged.
        """
        name = clean_name(name)
        path = self._find(name)
        if not path.is_file():
            raise PresetError(f'There is no preset "{name}".')
        try:
            settings: FabricSettings = CONTROLS.settings_from(_read(path)["settings"])
            return settings
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # SettingsError is a ValueError
            raise PresetError(
                f'The preset "{name}" cannot be used: its file is damaged. Save it again or delete it.'
            ) from None

    def delete(self, name: str) -> bool:
        """Remove a preset; False if there was none."""
        name = clean_name(name)
        return remove(self._find(name), f'The preset "{name}"', PresetError)

    def list(self) -> tuple[str, ...]:
        """All names in alphabetical order. A damaged file is listed by its file's stem, so that it can be deleted."""
        names = []
        try:
            entries = sorted(entry.name for entry in os.scandir(self.folder))
        except OSError:  # no folder yet: nothing was saved
            return ()
        for entry in entries:
            stem, suffix = os.path.splitext(entry)
            if suffix != ".json" or not _STEM.fullmatch(stem):
                continue
            try:
                name = clean_name(_read(self.folder / entry)["name"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                name = stem
            names.append(name if self._path(name).name == entry else stem)
        return tuple(sorted(names, key=lambda name: (name.casefold(), name)))

    def _find(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file() and _STEM.fullmatch(name):  # a damaged file goes by its stem, see list()
            return self.folder / f"{name}.json"
        return path

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashed_file_name('preset', name)}.json"


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError("too large for a preset")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("fabric_preset") != _VERSION:
        raise ValueError("not a preset")
    if not isinstance(content.get("settings"), dict):
        raise ValueError("a preset without settings")
    return content
