"""Folders of the host, under the names that scripts import. Values are paths_internal's at the time of asking."""

from __future__ import annotations

from typing import Any

from modules import paths_internal


def __getattr__(name: str) -> Any:
    return getattr(paths_internal, name)
