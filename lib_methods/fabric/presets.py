"""Named FABRIC presets: likes, dislikes, their weights and all settings, each a JSON file in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.errors import reason
from lib_methods.files import NamedFiles, replacing

from .settings import CONTROLS, FabricSettings

MAX_FILE_BYTES = 2**20
_VERSION = 1


class PresetError(SettingsError):
    """A preset that cannot be saved, found or read; the message says why."""


class PresetFolder(NamedFiles):
    """Presets in a folder."""

    kind, suffix, error = "preset", ".json", PresetError

    def read_name(self, file: Path) -> str:
        return str(self._read(file)["name"])

    def save(self, name: str, settings: FabricSettings) -> str:
        """Keep `settings` under `name`, in place of an older preset of that name; returns the name as it is kept."""
        name = self.clean_name(name)
        content = {"fabric_preset": _VERSION, "name": name, "settings": CONTROLS.values(settings)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(name), shared=True) as file:
                file.write(json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8"))
        except OSError as error:
            raise PresetError(f"The preset cannot be saved. {reason(error)}") from None
        return name

    def load(self, name: str) -> FabricSettings:
        """The settings kept under `name`. Its images may be missing from the image store.

        Raises:
            PresetError: there is no such preset, or its file is damaged.
        """
        file = self.find(name)
        try:
            settings: FabricSettings = CONTROLS.settings_from(self._read(file)["settings"])
            return settings
        except SettingsError:
            raise PresetError(
                f'The preset "{name}" cannot be used: its file is damaged. Save it again or delete it.'
            ) from None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large for a preset")
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["fabric_preset"] != _VERSION or not isinstance(content["name"], str):
                raise ValueError("not a preset")
            if not isinstance(content["settings"], dict):
                raise ValueError("a preset without settings")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise PresetError(f"The file is not a preset: {problem}.") from None
        found: dict[str, Any] = content
        return found
