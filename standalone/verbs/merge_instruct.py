"""The verb merge-instruct: an instruct version of a checkpoint, A + B - C."""

from __future__ import annotations

import argparse
import sys

from .arguments import existing_file, new_file
from .serve import say


def _show(share: float) -> None:
    if sys.stdout.isatty():
        print(f"\r  {int(share * 100):3d} %", end="", flush=True)


def run(options: argparse.Namespace) -> int:
    """Merges and says where the result is."""
    a, b, c = (existing_file(path, name) for path, name in ((options.a, "A"), (options.b, "B"), (options.c, "C")))
    out = new_file(options.out or a.with_name(f"{a.stem}-instruct.safetensors"), "--out")
    from standalone.engine.merge import merge_instruct

    counts = merge_instruct(a, b, c, out, _show)
    if sys.stdout.isatty():
        print("\r" + " " * 10 + "\r", end="")
    say(f"{counts['merged']} weights merged, {counts['kept']} taken from {a.name} as they are.")
    say(str(out))
    return 0
