"""What the tab shows of a run: no markup from outside, and never a long page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lib_methods.dreambooth.tab import page
from lib_methods.dreambooth.tab.curve import curve_svg, smoothed
from lib_methods.jobs.files import Record
from lib_methods.jobs.job import State
from lib_methods.jobs.log import LogReader, Progress, Sample


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
        assert "9.3 GB" in shown and ("estimate: 90 s" if status == "done" else "about 90 s") in shown


def test_samples_are_a_grid_of_prompts_and_steps(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    prompts = ("a dog", "a dog <b>")
    first = Sample(100, (tmp_path / "a.png", tmp_path / "b.png"), prompts)
    second = Sample(200, (tmp_path / "c.png", tmp_path / "gone.png"), prompts)
    shown = page.samples_html(Progress(samples=[first, second]))
    steps, *rows = re.findall(r"<tr>(.*?)</tr>", shown)
    assert steps.index("Step 200") < steps.index("Step 100"), "the newest first"
    assert [row.count("<td>") for row in rows] == [2, 2] and [row.count("<img ") for row in rows] == [2, 1]
    assert "a dog &lt;b&gt;" in rows[1] and "<b>" not in shown


def test_the_curve_is_smoothed_without_a_bias_and_told_under_the_pointer() -> None:
    assert smoothed([(step, 2.0) for step in range(9)]) == [(step, pytest.approx(2.0)) for step in range(9)]
    noisy = [(step, 1.0 + (-1) ** step) for step in range(100)]
    assert all(0.8 < value < 1.2 for _, value in smoothed(noisy)[20:])
    svg = curve_svg(Progress(steps=4, losses={1: (0.5, 0.25), 2: (0.25, None)}))
    assert "<title>step 1: subject 0.5, class 0.25</title>" in svg and "<title>step 2: subject 0.25</title>" in svg


def test_the_curve_of_a_long_training_stays_small() -> None:
    progress = Progress(steps=100_000, losses=dict.fromkeys(range(1, 100001), (1.0, 0.5)))
    assert len(curve_svg(progress)) < 20_000
    assert curve_svg(Progress(losses={1: (1.0, None)})) == ""
    assert "class</tspan>" not in curve_svg(Progress(losses={1: (0.0, None), 2: (0.0, None)}))
