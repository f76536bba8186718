"""Compare: a job makes every batch twice from the same seeds, first without a method and then with it.

In this order the last batch has the method, and so has the infotext of the grid, which hosts write after it.
"""

from __future__ import annotations

from typing import Any

_LISTS = (
    "all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "all_hr_prompts", "all_hr_negative_prompts"
)  # fmt: skip


def double(p: Any) -> None:
    """Let the host make every batch of the job twice. For a script's `process`, once the host has filled the lists."""
    size, count = int(p.batch_size), int(p.n_iter)
    for name in _LISTS:
        entries = getattr(p, name, None)
        if isinstance(entries, list) and len(entries) == size * count:
            batches = [entries[start : start + size] for start in range(0, len(entries), size)]
            setattr(p, name, [entry for batch in batches for entry in batch + batch])
    p.n_iter, p.steer_compared = 2 * count, True


def undouble(p: Any) -> None:
    """The job's own number of batches again, before the host fills its lists: a job object may be used again."""
    if is_compared(p):
        p.n_iter, p.steer_compared = int(p.n_iter) // 2, False


def is_compared(p: Any) -> bool:
    """Whether the job makes every batch twice."""
    return bool(getattr(p, "steer_compared", False))


def is_without(p: Any, batch_number: int) -> bool:
    """Whether this batch of the job goes without the method."""
    return is_compared(p) and batch_number % 2 == 0
