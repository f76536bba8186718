"""Loads a script file as a module."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from types import ModuleType

loaded_scripts: dict[str, ModuleType] = {}


def load_module(path: str) -> ModuleType:
    """Runs the Python file at `path` and returns its module, registered under a name that no package has."""
    stem = os.path.splitext(os.path.basename(path))[0]
    name = f"standalone_script_{stem}_{hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{os.path.basename(path)} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickling look their module up by name
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    loaded_scripts[path] = module
    return module
