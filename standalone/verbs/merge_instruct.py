"""The verb merge-instruct: an instruct version of a checkpoint, A + B - C."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .serve import say


def _show(share: float) -> None:
    if sys.stdout.isatty():
        print(f"\r  {int(share * 100):3d} %", end="", flush=True)


def run(options: argparse.Namespace) -> int:
    """Merges and says where the result is."""
    from standalone.engine.errors import UserError
    from standalone.engine.merge import merge_instruct

    a, b, c = (Path(path).expanduser().resolve() for path in (options.a, options.b, options.c))
    out = Path(options.out).expanduser().resolve() if options.out else a.with_name(f"{a.stem}-instruct.safetensors")
    try:
        counts = merge_instruct(a, b, c, out, _show)
    except UserError as error:
        print(str(error), file=sys.stderr)
        return 1
    if sys.stdout.isatty():
        print("\r" + " " * 10 + "\r", end="")
    say(f"{counts['merged']} weights merged, {counts['kept']} taken from {a.name} as they are.")
    say(str(out))
    return 0
