"""Sets up what is missing, then runs the verb."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import os
import sys
from pathlib import Path

from lib_methods.errors import UserError

from . import environment, options


def _say(text: str) -> None:
    print(text, flush=True)


_MODULES = {
    **dict.fromkeys(("bench", "evaluate"), "methods"),
    **dict.fromkeys(("merge-instruct", "make-instruct-data", "train-instruct"), "instruct"),
}
"""The modules of verbs that are not called as their verb."""


def _fail(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return status


def _utf8_output() -> None:
    """A console of another encoding must not stop the command because of one letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="replace")


def dispatch(parsed: argparse.Namespace) -> int:
    """Runs the verb in this interpreter. Returns the exit status: 0 done, 1 failed, 2 wrong command line."""
    try:
        module = importlib.import_module(f"standalone.verbs.{_MODULES.get(parsed.verb, parsed.verb.replace('-', '_'))}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("standalone", "lib_methods", "benchmarks"):
            raise
        return _fail(
            f"This Python lacks the package {package}: start without {environment.NO_VENV}, or remove .venv "
            "and start again.",
            1,
        )
    try:
        return int(module.run(parsed))
    except UserError as error:
        return _fail(str(error), 2 if isinstance(error, options.UsageError) else 1)


def main(arguments: list[str]) -> int:
    """The whole command. Returns the exit status: as `dispatch`, and 130 stopped."""
    gc.set_threshold(20_000, 20, 20)  # or collecting garbage takes a sixth of the time that the libraries load
    _utf8_output()
    try:
        parsed = options.parse(arguments)
        requirements = environment.DEVELOPERS if parsed.verb == "test" else environment.REQUIREMENTS
        other = environment.ensure(requirements, _say)
        plain = environment.without_logins(arguments, os.environ) if os.name != "nt" else arguments
        if other is not None or plain != arguments:
            return environment.run_again(other or Path(sys.executable), plain)
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        return dispatch(parsed)
    except UserError as error:
        return _fail(str(error), 2 if isinstance(error, options.UsageError) else 1)
    except KeyboardInterrupt:
        return _fail("\nStopped.", 130)
