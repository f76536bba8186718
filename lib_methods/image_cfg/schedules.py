"""A scale's schedule over the sampling steps."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine")


def scale_at(schedule: str, first: float, last: float, progress: float) -> float:
    """The scale at a part of the way, `progress` from 0 (first guided step) to 1 (last guided step).

    "constant" stays at `first`; "linear" goes evenly to `last`; "cosine" goes there along half a wave, slowly at both
    ends.
    """
    if schedule == "constant":
        return first
    if schedule == "linear":
        return first + (last - first) * progress
    if schedule == "cosine":
        return first + (last - first) * (1 - math.cos(math.pi * progress)) / 2
    raise ValueError(f"there is no schedule {schedule!r}")
