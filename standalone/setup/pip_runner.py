"""Runs pip in the virtual environment, and says in plain words how far it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import SetupError, explain

Say = Callable[[str], None]
_KEPT_LINES = 200


class PipRunner:
    """pip of one interpreter. `log` collects everything that it prints."""

    def __init__(self, python: Path, log: Path, say: Say) -> None:
        self.python = python
        self.log = log
        self.say = say

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]

    def install(self, *arguments: str, total: int = 0, need_gb: float = 3.0) -> None:
        """`pip install` with progress; `total` is how many packages to count to. SetupError if it fails."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ pip install {' '.join(arguments)}\n")
            try:
                status, output = self._stream(["install", "--progress-bar", "off", *arguments], total, log.write)
            except OSError as error:
                raise SetupError(explain(str(error), need_gb)) from error
        if status:
            raise SetupError(explain(output, need_gb))

    def _stream(self, arguments: Sequence[str], total: int, write: Callable[[str], object]) -> tuple[int, str]:
        kept: list[str] = []
        progress = Progress(self.say, total)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with subprocess.Popen(
            self._command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    write(line)
                    kept = [*kept[-_KEPT_LINES:], line]
                    progress.read(line)
            except BaseException:
                process.terminate()
                raise
        return process.returncode, "".join(kept)

    def offered(self, requirement: str, *arguments: str) -> dict[str, Any] | None:
        """The metadata of what pip would install for `requirement` alone; None when it finds nothing or has it."""
        command = self._command(
            "install",
            "--dry-run",
            "--no-deps",
            "--quiet",
            "--retries",
            "1",
            "--timeout",
            "20",
            "--report",
            "-",
            *arguments,
            requirement,
        )
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            return None
        try:
            wanted = json.loads(done.stdout)["install"]
        except (ValueError, KeyError):
            return None
        return dict(wanted[0]["metadata"]) if wanted else None


class Progress:
    """Turns pip's lines into a line per package."""

    def __init__(self, say: Say, total: int) -> None:
        self.say = say
        self.total = total
        self.seen: set[str] = set()

    def read(self, line: str) -> None:
        """Takes one line of pip's output."""
        found = re.match(r"(Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)", line)
        if found:
            name = found.group(2).lower()
            if name not in self.seen:
                self.seen.add(name)
                if found.group(1) == "Collecting":
                    self.say(f"  {self._count()}{found.group(2)}")
            return
        found = re.match(r"\s*Downloading (\S+) \(([\d.]+) ([MG]B)\)", line)
        if found and (found.group(3) == "GB" or float(found.group(2)) >= 5):
            self.say(f"      downloading {found.group(2)} {found.group(3)}")
        elif line.startswith("Installing collected packages:"):
            count = line.count(",") + 1
            patience = ", which takes a minute or two" if count > 5 else ""
            self.say(f"  unpacking {count} package{'s' if count > 1 else ''}{patience} ...")

    def _count(self) -> str:
        return f"[{min(len(self.seen), self.total)}/{self.total}] " if self.total else ""
