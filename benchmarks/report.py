"""Writes what an evaluation or a bench has found: figures as JSON, tables and images as Markdown."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_json(path: Path, metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """The figures, and what they were measured with."""
    text = json.dumps({"metrics": metrics, "settings": settings}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def write_report(
    out: Path,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    started: float,
    lines: Sequence[str],
    after: Sequence[str],
    images: Sequence[str] = ("report.png", "examples.png"),
) -> None:
    """report.json and report.md. started: by `time.monotonic`. lines: title and table, the table is printed, too.
    after: the Markdown below it, a paragraph each. images: files that were written beside the report."""
    measured = {"seconds": round(time.monotonic() - started), "python": platform.python_version()}
    write_json(out / "report.json", metrics, {**settings, **measured})
    text = "\n".join(lines) + "".join(f"\n\n{paragraph}" for paragraph in after)
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    print("\n".join(lines[2:]))
    print(f"Written to {out.name}: {', '.join(['report.json', 'report.md', *images])}.")
