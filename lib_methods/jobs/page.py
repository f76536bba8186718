"""What the tabs of jobs show alike, as HTML that every gradio version shows alike. Classes are in style.css."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from lib_methods.jobs.job import State
from lib_methods.jobs.log import Progress, duration, number
from lib_methods.webui.widgets import status_html


def headline(state: State, running: str, done: str) -> str:
    """The one line about what is going on. running, done: where it is so; what the line says after the name."""
    record, progress = state.record, state.progress
    assert record is not None
    name = f'"{record.name}"'
    if state.is_running and state.stopping:
        return status_html(f"{name} stops at the end of this step. Cancel once more to end it at once.")
    if record.status == "waiting":
        return status_html(f"{name} waits for the image that is being generated.")
    if record.status == "running":
        return status_html(f"{running} {name}: {doing(progress)}")
    if record.status == "done":
        return status_html(f"{name} is done in {duration(record.ended - record.started)}.{done}")
    if record.status == "cancelled":
        where = f" after step {progress.step}" if progress.step else ""
        return status_html(f"{name} was cancelled{where}. Nothing is lost: it can be resumed.")
    return status_html(f"{name} failed. {record.error}", problem=True)


def doing(progress: Progress) -> str:
    """How far: the step, or the phase before the first one."""
    step, phase = progress.of("step"), progress.of("phase")
    stage = number(step.get("stage"))
    loading = stage and (number(phase.get("time")) or 0.0) > (number(step.get("time")) or 0.0)
    if progress.steps and not loading:
        left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
        where = f"stage {stage:.0f}, " if stage else ""
        return f"{where}step {progress.step} of {progress.steps}{left}{' in all' if where and left else ''}."
    text = str(phase.get("text", "")).strip().rstrip(".")
    if not text:
        return "starting."
    total = number(phase.get("total"))
    done = f" ({int(number(phase.get('done')) or 0)} of {int(total)})" if total else ""
    return f"{text[:1].lower()}{text[1:]}{done}."


def bar_html(done: float, total: float) -> str:
    """A bar that is filled as far as something is done."""
    share = min(max(done / total, 0.0), 1.0) if total else 0.0
    return (
        f'<div class="steer-job-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><div style="width:{100 * share:.1f}%"></div></div>'
    )


def aside_html(text: str) -> str:
    return f'<p class="steer-job-aside">{html.escape(text)}</p>'


def notes_html(notes: Sequence[object]) -> str:
    """Sentences as a list; "" for none."""
    said = "".join(f"<li>{html.escape(str(note))}</li>" for note in notes)
    return f'<ul class="steer-job-notes">{said}</ul>' if said else ""


def warnings_html(texts: Sequence[str]) -> str:
    return "".join(f'<p class="steer-job-note">{html.escape(text)}</p>' for text in texts)


def data_url(image: Image.Image) -> str:
    """A small image as the address of an <img>."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
