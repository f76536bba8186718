"""What is left open is chosen, and what happens is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.schedule import resolved
from lib_methods.jobs import log as progress_module
from lib_methods.jobs.log import Pace, Report, duration


def test_what_is_left_open_is_chosen() -> None:
    asked = TrainingSettings(Path("p"), Path("b"), Path("o"), "x", "dog", kind="full")
    chosen = resolved(asked, photos=4, resolution=512, unet_parameters=860_000_000)
    assert (chosen.steps, chosen.rate, chosen.prior, chosen.resolution) == (1000, 5e-6, "images", 512)
    assert resolved(replace(asked, kind="LoRA"), photos=4, resolution=512, unet_parameters=10**9).prior == "model"
    mine = replace(asked, steps=7, rate=0.5, text_rate=0.25, prior="off", resolution=64, sample_every=3)
    assert resolved(mine, photos=4, resolution=512, unet_parameters=10) == mine


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (7500, "2 h 05 min")]
)
def test_lengths_of_time_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_pace_forgets_a_slow_first_step() -> None:
    pace = Pace()
    assert pace.seconds is None
    pace.add(60.0)
    for _ in range(3):
        pace.add(1.0)
    assert pace.seconds == pytest.approx(1.0)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    report = Report(tmp_path / "none", said.append, tensorboard=False)
    for _ in range(3):
        report.event("step", step=1)
    assert len(said) == 1 and "cannot be written" in said[0]


def test_a_line_that_a_kill_has_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / "training.jsonl").write_bytes(b'{"event": "step"}\n{"event": "st')
    Report(tmp_path, print, tensorboard=False).event("save", step=2, file=Path("/secret/place/x"), loss=float("nan"))
    last = json.loads((tmp_path / "training.jsonl").read_bytes().splitlines()[-1])
    assert last["event"] == "save" and last["file"] == "x" and last["loss"] is None


def test_tensorboard_gets_the_losses_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        def __init__(self, folder: str) -> None:
            self.seen: list[tuple[str, float, int]] = []
            self.closed = False

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.seen.append((name, value, step))

        def close(self) -> None:
            self.closed = True

    writer = Writer("")
    module = type("Module", (), {"SummaryWriter": lambda folder: writer})
    monkeypatch.setattr(progress_module.importlib, "import_module", lambda name: module)
    report = Report(tmp_path, lambda text: None)
    report.step(3, 9, {"loss": 0.5, "subject": 0.25, "prior": 0.25}, 1e-4, 1.0)
    report.close()
    assert ("loss", 0.5, 3) in writer.seen and ("rate", 1e-4, 3) in writer.seen and writer.closed
