"""Forge and the forks that share its backend: reForge, Forge Classic, Forge Neo."""

from __future__ import annotations

import importlib
from typing import Any

_MEMORY = ("backend.memory_management", "ldm_patched.modules.model_management")


_PREDICTION = ("backend.sampling.sampling_function", "ldm_patched.modules.samplers")


def memory_management() -> Any:
    """The fork's own memory management, whether or not a model is loaded; None in other hosts."""
    return _first(_MEMORY)


def prediction() -> Any:
    """The fork's module with `calc_cond_uncond_batch`, which runs the UNet for lists of conditions."""
    return _first(_PREDICTION)


def _first(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    return None
