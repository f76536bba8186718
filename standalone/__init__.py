"""The host that runs the pack without a WebUI."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The pack's folder, the one with run.py in it."""
