"""Translations of the page: files `localizations/NAME.json` of the pack and of extensions, in the WebUI's form."""

from __future__ import annotations

import json
from pathlib import Path

from standalone.host import errors, paths

NONE = "None"
"""The setting's value for a page in English."""


def names() -> list[str]:
    """What the setting offers: "None", and the names of the files there are."""
    return [NONE, *sorted({file.stem for file in _files()} - {NONE})]


def translations(name: str) -> dict[str, str]:
    """English texts and what replaces them. Files of the same name are merged: an extension's entry wins over the
    pack's. A file that cannot be read is logged and left out."""
    found: dict[str, str] = {}
    for file in _files():
        if file.stem != name:
            continue
        try:
            entries = json.loads(file.read_text(encoding="utf-8-sig"))
            found |= {text: told for text, told in entries.items() if isinstance(told, str) and told}
        except (OSError, ValueError, RecursionError, AttributeError):
            errors.report(f"Error loading localization from {file}", exc_info=True)
    return found


def script(name: str) -> str:
    """The translations as the page's scripts find them; none where the page stays in English."""
    return f"window.localization = {json.dumps({} if name == NONE else translations(name))};\n"


def _files() -> list[Path]:
    """In the order of the extensions, of which the pack is the first."""
    return [file for extension in paths.active() for file in extension.list_files("localizations", ".json")]
