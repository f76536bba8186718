"""The verbs bench and evaluate: a method's program benchmarks/bench_<method>.py or benchmarks/evaluate_<method>.py."""

from __future__ import annotations

import argparse
import importlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

from lib_methods.errors import UserError, reason
from standalone import ROOT
from standalone.setup.options import UsageError

from .arguments import writable_folder

FORMER = {"thresholding": "guidance"}
"""Methods by their earlier names."""
IMAGES, QUICK = 200, 24
"""How many images are behind each figure of an evaluation, and of a quick one."""


def run(options: argparse.Namespace) -> int:
    """Runs `main(out, quick)` of the method or of all, with further options where it has them; the exit status."""
    kind = options.verb
    methods = sorted(path.stem[len(kind) + 1 :] for path in (ROOT / "benchmarks").glob(f"{kind}_*.py"))
    name = str(options.method).replace("-", "_")
    name = FORMER.get(name, name)
    if name not in (*methods, "all"):
        have = f"There is one for: {', '.join(methods)}." if methods else "There is none yet."
        raise UsageError(f"There is no '{kind}' for a method named '{options.method}'. {have}")
    out = writable_folder(Path(options.out), "--out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: the folder cannot be made. {reason(error)}") from None
    given = {
        key: value for key in ("stages", "text_encoders", "size", "page") if (value := getattr(options, key, None))
    }
    if kind == "evaluate":
        given["images"] = options.images or (QUICK if options.quick else IMAGES)
    if name == "all":
        from benchmarks.harness.figures import main as main_of_all

        main: Any = partial(main_of_all, kind, methods)
    else:
        module = importlib.import_module(f"benchmarks.{kind}_{name}")
        main, sizes = module.main, getattr(module, "PIXELS", ("tiny", "full"))
        if given.get("size", "") not in ("", *sizes):
            raise UsageError(f"'{kind} {options.method}' has no size {options.size}.")
    for key in given.keys() - inspect.signature(main).parameters.keys():
        raise UsageError(f"'{kind} {options.method}' has no option --{key.replace('_', '-')}.")
    return int(main(out, bool(options.quick), **given))
