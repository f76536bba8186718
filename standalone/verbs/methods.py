"""Finds the measuring programs of a method: benchmarks/evaluate_<method>.py and benchmarks/bench_<method>.py."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from lib_methods.errors import UserError, reason
from standalone import ROOT
from standalone.setup.options import UsageError

from .arguments import writable_folder


def known(kind: str, folder: Path = ROOT / "benchmarks") -> list[str]:
    """The methods that have a program of this kind ("evaluate" or "bench")."""
    return sorted(path.stem[len(kind) + 1 :] for path in folder.glob(f"{kind}_*.py"))


def run_method(kind: str, options: argparse.Namespace) -> int:
    """Runs `benchmarks.<kind>_<method>.main(out, quick)` and returns its exit status."""
    methods = known(kind)
    name = str(options.method).replace("-", "_")
    if name not in methods:
        have = f"There is one for: {', '.join(methods)}." if methods else "There is none yet."
        raise UsageError(f"There is no '{kind}' for a method named '{options.method}'. {have}")
    out = writable_folder(Path(options.out), "--out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: the folder cannot be made. {reason(error)}") from None
    module = importlib.import_module(f"benchmarks.{kind}_{name}")
    return int(module.main(out, bool(options.quick)))
