"""A job's process: how it is started, and why it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_methods.errors import NO_MEMORY
from lib_methods.jobs.files import JobFiles

WORKER = Path(__file__).resolve().parent / "worker.py"
STOPPED = 130
"""The exit status of a process that was asked to stop."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def open_process(
    command: Sequence[str], console: Path, resume: bool, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts the process detached from the host's console signals, and without a window on Windows.

    Its standard input is a pipe whose other end closes with the host. console: the file that gets what it prints.
    environment: what the host adds to its own.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with console.open("ab" if resume else "wb") as output:
        return subprocess.Popen(
            [*command, *(["--resume"] if resume else [])],
            cwd=WORKER.parents[2],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**kept, **_OFFLINE, **environment},
            **options,
        )


def why(files: JobFiles, status: int | None) -> str:
    """A sentence about a process that ended without one: no path, no traceback."""
    try:
        lines = files.console.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    text = "\n".join(lines[-40:])
    if "MemoryError" in text or any(words in text.lower() for words in NO_MEMORY):
        return f"Out of memory. Choose {files.kind.spare} under More, then resume."
    if status is not None and status < 0:
        return "The system ended the process, often because memory ran out. You can resume it."
    if "No space left" in text:
        return "The disk is full. Make room, then resume."
    return (
        f"{files.kind.name} stopped because of an internal error. Its console output is in the WebUI's folder "
        f"{files.root.name}/jobs."
    )
