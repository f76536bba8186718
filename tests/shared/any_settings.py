"""Random valid settings of a method, from its table."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lib_methods.webui.controls import Control
from lib_methods.webui.table import Table


def any_settings(table: Table, **chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Settings with any value of each number, choice and switch. chosen: strategies for other fields, or in place of
    these."""
    drawn = {control.attribute: made for control in table.controls if (made := _any(control)) is not None}
    return st.builds(table.settings, **{**drawn, **chosen})


def _any(control: Control) -> st.SearchStrategy[Any] | None:
    if control.choices:
        return st.sampled_from(control.choices)
    if control.kind == "checkbox":
        return st.booleans()
    if control.kind in ("slider", "number"):
        low, high = control.low, control.high
        return st.integers(int(low), int(high)) if control.whole else st.floats(low, high)
    return None
