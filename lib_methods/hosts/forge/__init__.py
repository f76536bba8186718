"""Forge and the forks that share its backend: reForge, Forge Classic, Forge Neo."""

from __future__ import annotations

import importlib
from typing import Any

_MEMORY = ("backend.memory_management", "ldm_patched.modules.model_management")


def memory_management() -> Any:
    """The fork's own memory management, whether or not a model is loaded; None in other hosts."""
    for name in _MEMORY:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    return None
