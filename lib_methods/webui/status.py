"""The plain line about what will happen."""

from __future__ import annotations

import html


def status_html(text: str, problem: bool = False) -> str:
    """The line, or what is wrong, as HTML that every gradio version shows alike; classes of style.css."""
    role = "alert" if problem else "status"
    kind = " steer-problem" if problem else ""
    return f'<div class="steer-status{kind}" role="{role}">{html.escape(text)}</div>'
