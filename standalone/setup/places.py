"""Where things are: the pack's folder and what is in it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The pack's folder, the one with run.py in it."""

VENV = ROOT / ".venv"
RUNTIME_PINS = ROOT / "requirements.txt"
DEVELOPER_PINS = ROOT / "requirements-dev.txt"
