"""What the tab shows of a run: no markup from outside, and never a long page."""

from __future__ import annotations

import json
from pathlib import Path

from lib_methods.dreambooth.tab import page
from lib_methods.jobs.files import Record
from lib_methods.jobs.job import State
from lib_methods.jobs.log import LogReader, Progress


def test_what_a_log_says_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    log = tmp_path / "training.jsonl"
    events = [
        {"event": "start", "subject": evil},
        {"event": "plan", "steps": 5, "device": evil, "notes": [evil], "bytes": 1e10, "seconds": 90},
        {"event": "warning", "text": evil},
        {"event": "phase", "text": evil, "done": 1, "total": 2},
    ]
    log.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    progress = LogReader(log).read()
    for status in ("waiting", "running", "done", "cancelled", "failed"):
        record = Record("rex", "LoRA", status, error=evil, prompt=evil, results=["rex.safetensors"])
        shown = page.state_html(State(record, progress)) + page.samples_html(progress)
        assert "<script" not in shown
        assert "9.3 GB" in shown and "about 90 s" in shown


def test_the_curve_of_a_long_training_stays_small() -> None:
    progress = Progress(steps=100_000, losses=dict.fromkeys(range(1, 100001), (1.0, 0.5)))
    assert len(page.curve_svg(progress)) < 20_000
    assert page.curve_svg(Progress(losses={1: (1.0, None)})) == ""
    assert "class</tspan>" not in page.curve_svg(Progress(losses={1: (0.0, None), 2: (0.0, None)}))
