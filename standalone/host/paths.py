"""The folders of the host. `configure` sets them before any script is loaded."""

from __future__ import annotations

import os
from pathlib import Path

modules_path = str(Path(__file__).resolve().parents[1] / "modules")
script_path = str(Path(__file__).resolve().parents[1])
data_path = script_path
models_path = os.path.join(script_path, "models")
extensions_dir = os.path.join(data_path, "extensions")
extensions_builtin_dir = os.path.join(script_path, "extensions-builtin")
default_output_dir = os.path.join(data_path, "outputs")
cwd = os.getcwd()


def configure(data_dir: Path, output_dir: Path) -> None:
    """Sets where the host keeps its settings (`data_dir`) and its images (`output_dir`); makes both folders."""
    global data_path, extensions_dir, default_output_dir, models_path
    data_dir.mkdir(parents=True, exist_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    data_path, default_output_dir = str(data_dir), str(output_dir)
    extensions_dir = os.path.join(data_path, "extensions")
    models_path = os.path.join(data_path, "models")
