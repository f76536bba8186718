"""Logs errors without stopping the host: scripts and callbacks may fail, generation continues."""

from __future__ import annotations

import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

exception_records: list[str] = []
MAX_RECORDS = 5


def record_exception() -> None:
    """Keeps the exception being handled, for a bug report; the last five are kept."""
    text = traceback.format_exc()
    if text and text not in exception_records:
        exception_records.append(text)
        del exception_records[:-MAX_RECORDS]


def report(message: str, *, exc_info: bool = False) -> None:
    """Prints `message` to stderr, and with `exc_info` the traceback of the exception being handled."""
    record_exception()
    for line in message.splitlines():
        print("***", line, file=sys.stderr)
    if exc_info:
        print(textwrap.indent(traceback.format_exc(), "    "), file=sys.stderr)
        print("---", file=sys.stderr)


def print_error_explanation(message: str) -> None:
    """Prints a framed explanation to stderr."""
    lines = message.strip().split("\n")
    frame = "=" * max(map(len, lines))
    print("\n".join([frame, *lines, frame]), file=sys.stderr)


def display(e: Exception, task: str, *, full_traceback: bool = False) -> None:
    """Prints what failed (`task`) and the exception."""
    record_exception()
    print(f"{task or 'error'}: {type(e).__name__}: {e}", file=sys.stderr)
    if full_traceback:
        traceback.print_exception(e, file=sys.stderr)


def run(code: Callable[[], Any], task: str) -> None:
    """Calls `code`, reporting an exception as a failure of `task`."""
    try:
        code()
    except Exception as error:
        display(error, task)
