"""Counts all steps of a job; the page has its own progress bar, so that nothing is printed."""

from __future__ import annotations


class TotalTQDM:
    """Has the WebUI's methods."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def reset(self) -> None:
        self.total = self.done = 0

    def update(self) -> None:
        self.done += 1

    def updateTotal(self, new_total: int) -> None:
        self.total = int(new_total)

    def clear(self) -> None:
        self.reset()
