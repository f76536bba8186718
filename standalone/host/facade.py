"""Modules under the WebUI's names: reading or replacing one of their names reads or replaces it in the host's module.

So an extension that assigns `modules.shared.sd_model` or wraps `modules.images.save_image` reaches the host itself.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_MISSING = object()


def lead(name: str, *homes: str) -> None:
    """Makes the module called `name` a facade: what it has imported from `homes` (below `standalone`) stays theirs."""
    module = sys.modules[name]
    modules = [sys.modules[f"standalone.{home}"] for home in homes]
    names: dict[str, property] = {}
    for key, value in list(vars(module).items()):
        if key.startswith("_"):
            continue
        home = next((home for home in modules if vars(home).get(key, _MISSING) is value), None)
        if home is not None:
            names[key] = _leading_to(home, key)
        del vars(module)[key]
    vars(module).update(__all__=sorted(names), __dir__=lambda: sorted(names))
    module.__class__ = type("Facade", (ModuleType,), dict(names))


def _leading_to(home: ModuleType, key: str) -> property:
    def get(module: ModuleType) -> Any:
        return getattr(home, key)

    def replace(module: ModuleType, value: Any) -> None:
        setattr(home, key, value)

    return property(get, replace)
