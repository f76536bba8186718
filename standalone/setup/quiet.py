"""Keeps the libraries on this machine: no telemetry, no look-ups, temporary files in our own folder."""

from __future__ import annotations

import os
from pathlib import Path

_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def stay_local(data_dir: Path) -> None:
    """Sets the environment variables that gradio and the model libraries read. Call it before they are imported."""
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    os.environ["GRADIO_TEMP_DIR"] = str(data_dir / "tmp" / "gradio")
