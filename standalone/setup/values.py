"""Values of the command line's options. Each raises argparse.ArgumentTypeError with a sentence."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable


def _number(text: str, low: float, high: float, kind: str) -> float:
    """`text` as a number from `low` to `high`; of thousands of digits or "nan", too, it is said in a sentence."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (kind == "whole number" and not value.is_integer()):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise argparse.ArgumentTypeError(f"'{shown}' is not a {kind} from {low} to {high}")
    return value


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        value = _number(text, low, high, "whole number")
        return int(text) if text.strip().lstrip("+-").isdecimal() else int(value)

    return read


def real(low: float, high: float) -> Callable[[str], float]:
    """A number from `low` to `high`."""
    return lambda text: _number(text, low, high, "number")


def size(text: str) -> tuple[int, int]:
    """Width and height from text such as 512x768; one number is both."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 512x768")
    width, height = (whole(16, 4096)(part) for part in (parts[0], parts[-1]))
    return width, height


def port(text: str) -> int:
    """A port from 1 to 65535."""
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port from 1 to 65535")
    return int(text)


def host(text: str) -> str:
    """A host name in lower case."""
    name = text.strip().lower().rstrip(".")
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise argparse.ArgumentTypeError(f"'{text}' is not a host name such as steer.lan, without http:// and port")
    return name
