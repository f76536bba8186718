"""Means with their margins of error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

_Z = 1.96  # 95 % of a normal distribution are within this many standard deviations


class Figure(float):
    """A mean, and the margin within which the true one lies with 95 % confidence."""

    margin: float

    def __new__(cls, value: float, margin: float) -> Figure:
        figure = super().__new__(cls, value)
        figure.margin = margin
        return figure

    def __str__(self) -> str:
        return f"{float(self):.3f} ± {self.margin:.3f}"


def mean(values: Iterable[float | Sequence[float]]) -> float:
    """The mean over independent images, with its margin; a bare number where a single value tells nothing.

    values: one for each image, or several, whose mean counts, as they depend on each other. Margin: of yes and no the
    longer side of Wilson's interval (1927), which is never empty; of anything else 1.96 standard errors.
    """
    found = np.array([np.mean(value) for value in values])
    middle, count = float(found.mean()), len(found)
    if len(np.unique(found)) > 1 and not np.isin(found, (0, 1)).all():
        return Figure(middle, float(_Z * found.std(ddof=1) / count**0.5))
    if not 0 <= middle <= 1:
        return Figure(middle, 0.0) if count > 1 else middle
    extra = _Z**2 / count
    half = _Z * (middle * (1 - middle) / count + extra / 4 / count) ** 0.5
    return Figure(middle, (half + abs(0.5 - middle) * extra) / (1 + extra))
