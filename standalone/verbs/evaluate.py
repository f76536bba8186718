"""The verb evaluate."""

from __future__ import annotations

import argparse

from .methods import run_method


def run(options: argparse.Namespace) -> int:
    """Runs the method's program of this kind and returns its exit status."""
    return run_method("evaluate", options)
