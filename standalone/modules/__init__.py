"""The part of the WebUI's `modules` package (v1.10.1) that scripts and extensions rely on.

Put on sys.path by `standalone.host`, so that `import modules` finds it. Names and signatures are the WebUI's, and tests
compare them; the code behind them is ours, in `standalone.host` and `standalone.engine`.
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
