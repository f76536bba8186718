"""The verb test: ruff, then pytest with mypy beside it, with one closing line."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from standalone import ROOT

MEMORY = 3 * 2**30  # bytes that a process of pytest takes
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b")


def _start(command: list[str], output: int | IO[str]) -> subprocess.Popen[str]:
    # more threads than cores that wait for each other in loops would be slower than one each
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )


def _stream(name: str, command: list[str]) -> tuple[int, str]:
    """Runs a command and passes its output on; returns its exit status and its last line that counts tests."""
    print(f"== {name}", flush=True)
    closing = ""
    with _start(command, subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if COUNTS.search(line) and " in " in line:
                closing = line
    return process.returncode, closing


def counts(closing: str) -> dict[str, int]:
    """passed, failed and skipped of pytest's closing line; an error in a fixture counts as failed."""
    found = {"passed": 0, "failed": 0, "skipped": 0}
    for number, word in COUNTS.findall(closing):
        key = {"error": "failed", "errors": "failed", "xfailed": "skipped", "xpassed": "passed"}.get(word, word)
        found[key] += int(number)
    return found


def summary(states: dict[str, bool], closing: str) -> str:
    """The closing line: all well with the number of tests, or what went wrong."""
    tests = counts(closing)
    text = f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped"
    bad = [name for name, good in states.items() if not good]
    return f"result: {text}" if not bad else f"FAILED in {' and '.join(bad)}: {text}"


def processes() -> int:
    """How many processes pytest gets: one more than cores, as some tests only wait for a browser; 3 at most."""
    count = min(3, (os.cpu_count() or 1) + 1)
    if hasattr(os, "sysconf"):
        count = min(count, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY)
    return max(1, count)


def pytest_command(tests: Sequence[str]) -> list[str]:
    """pytest over what is named; over everything in several processes, in the order of tests/conftest.py."""
    if tests:
        return ["pytest", *tests]
    return ["pytest", "-n", str(processes()), "--dist", "loadfile", "--no-loadscope-reorder"]


def run(options: argparse.Namespace) -> int:
    """Runs the linters over everything, and the tests named in `options.tests` (all by default)."""
    needed = {
        "ruff": "ruff",
        "mypy": "mypy",
        "pytest": "pytest",
        "pytest-xdist": "xdist",
        "pytest-rerunfailures": "pytest_rerunfailures",
    }
    absent = [name for name, module in needed.items() if importlib.util.find_spec(module) is None]
    if absent:
        print(f"This Python lacks {', '.join(absent)}: start without STEER_NO_VENV.", file=sys.stderr)
        return 1
    states: dict[str, bool] = {}
    states["ruff"] = _stream("ruff", ["ruff", "check", "."])[0] == 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output, _start(["mypy"], output) as mypy:
        status, closing = _stream("pytest", pytest_command(options.tests))
        states["mypy"] = mypy.wait() == 0
        output.seek(0)
        print("== mypy", output.read(), sep="\n", end="", flush=True)
    states["pytest"] = status == 0
    print(summary(states, closing), flush=True)
    return 0 if all(states.values()) else 1
