"""Axes for the X/Y/Z plot, where the host has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NumberAxis:
    """An axis of numbers from `low` to `high`; `apply(p, value)` sets a cell's job up."""

    label: str
    low: float
    high: float
    apply: Callable[[Any, float], None]


def add_axes(scripts_data: Iterable[Any], title: str, axes: Iterable[NumberAxis]) -> None:
    """Add axes named "[title] label", once.

    scripts_data: the host's loaded scripts. The plot's module is loaded by path, so it is found among those.
    """
    grid = next((data.module for data in scripts_data if Path(data.path).name == "xyz_grid.py"), None)
    if grid is None or any(axis.label.startswith(f"[{title}]") for axis in grid.axis_options):
        return
    for axis in axes:
        name = f"[{title}] {axis.label}"
        confirm = grid.confirm_range(axis.low, axis.high, name)
        grid.axis_options.append(grid.AxisOption(name, float, _three(axis.apply), confirm=confirm))


def _three(apply: Callable[[Any, float], None]) -> Callable[[Any, float, Any], None]:
    """The plot also hands over all values of the axis."""
    return lambda p, value, values: apply(p, value)
