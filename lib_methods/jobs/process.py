"""The process of a job: how it is started, and what its end means."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib_methods.errors import NO_MEMORY

WORKER = Path(__file__).resolve().parent / "worker.py"
STOPPED = 130
"""Its exit status when it was asked to stop."""


def open_process(
    command: Sequence[str], console: Path, resume: bool, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts the process detached from the host's console signals, and without a window on Windows.

    Its standard input is a pipe whose other end closes with the host. console: the file that gets what it prints.
    environment: what the host adds to its own.
    """
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
            env={**_environment(), **environment},
            **options,
        )


def is_held(lock: Path) -> bool:
    """Whether some process, this one included, holds the lock; it ends with its process, however that ends."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be opened: then nobody could lock it
        return False


def _environment() -> dict[str, str]:
    """The process's environment: nothing from the network but what pip gets, nothing to ask, output at once."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def why(console: Path, status: int | None) -> str:
    """A sentence about a process that ended without one: no path, no traceback."""
    try:
        lines = console.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    text = "\n".join(lines[-40:])
    if "MemoryError" in text or any(words in text.lower() for words in NO_MEMORY):
        return "Out of memory. Choose a LoRA, a smaller resolution or a lower memory limit under More, then resume."
    if status is not None and status < 0:
        return "The system ended the training process, often because memory ran out. You can resume it."
    if "No space left" in text:
        return "The disk is full. Make room, then resume."
    return "Training stopped because of an internal error. Its console output is in the WebUI's folder dreambooth/jobs."
