"""What a training run tells: its log, its choices, and the card beside the result."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lib_methods.dreambooth.output.result import write_sidecar
from lib_methods.dreambooth.settings import TrainingSettings, resolved
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs import log as progress_module
from lib_methods.jobs.log import Pace, Report, duration


def test_what_is_left_open_is_chosen() -> None:
    asked = TrainingSettings(Path("p"), Path("b"), Path("o"), "x", "dog", kind="full")
    chosen = resolved(asked, photos=[4], resolution=512, unet_parameters=860_000_000)
    assert (chosen.steps, chosen.rate, chosen.prior, chosen.resolution) == (1000, 5e-6, "images", 512)
    assert resolved(replace(asked, kind="LoRA"), photos=[4], resolution=512, unet_parameters=10**9).prior == "model"
    mine = replace(asked, steps=7, rate=0.5, text_rate=0.25, prior="off", resolution=64, sample_every=3)
    assert resolved(mine, photos=[4], resolution=512, unet_parameters=10) == mine


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
    with Report(tmp_path, lambda text: None).ending("The run", "", "") as report:
        report.step(3, 9, {"loss": 0.5, "subject": 0.25, "prior": 0.25}, 1e-4, 1.0)
    assert ("loss", 0.5, 3) in writer.seen and ("rate", 1e-4, 3) in writer.seen and writer.closed


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (MemoryError(), UserError, "Out of memory. Save some."),
        (OSError(28, "No space left on device"), UserError, "The disk gave an error. The disk is full"),
        (UserError("No photos."), UserError, "No photos."),
        (KeyError("x"), KeyError, "The run failed unexpectedly (KeyError)."),
        (Cancelled("Stopped."), Cancelled, None),
    ],
)
def test_whatever_ends_a_run_is_in_its_log(
    tmp_path: Path, error: Exception, raised: type[Exception], told: str | None
) -> None:
    with (
        pytest.raises(raised),
        Report(tmp_path, print, tensorboard=False).ending("The run", "Save some.", "All is kept."),
    ):
        raise error
    last = json.loads((tmp_path / "training.jsonl").read_bytes().splitlines()[-1])
    assert last["event"] == ("cancelled" if told is None else "error") and str(last.get("text", "")).startswith(
        told or ""
    )


def card(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("family", "version"), [("sd1", "SD1"), ("sd2", "SD2"), ("sdxl", "SDXL"), ("x", "Unknown")])
def test_the_card_has_the_webuis_words(tmp_path: Path, family: str, version: str) -> None:
    result = tmp_path / "out" / "my dog v1.5.safetensors"
    files = write_sidecar(
        result,
        family=family,
        activation="ohwx dog",
        description="Bélla",
        weight=0.8,
        preview=Image.new("RGBA", (8, 4), (255, 0, 0, 255)),
    )
    assert [path.name for path in files] == ["my dog v1.5.json", "my dog v1.5.preview.png"]
    assert card(files[0]) == {
        "description": "Bélla",
        "sd version": version,
        "activation text": "ohwx dog",
        "preferred weight": 0.8,
        "notes": "",
    }
    with Image.open(files[1]) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (8, 4))


def test_what_the_owner_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "dog.json"
    path.write_text(
        json.dumps({"activation text": "old", "negative text": "blurry", "notes": "for the calendar"}), encoding="utf-8"
    )
    files = write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="ohwx dog")
    assert files == [path]
    found = card(path)
    assert (found["activation text"], found["negative text"], found["notes"]) == (
        "ohwx dog",
        "blurry",
        "for the calendar",
    )
    write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="ohwx dog", notes="800 steps")
    assert card(path)["notes"] == "800 steps"


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{broken", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_card_that_cannot_be_read_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dog.json").write_bytes(content)
    write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="ohwx dog")
    assert card(tmp_path / "dog.json")["activation text"] == "ohwx dog"


def test_a_full_disk_leaves_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="dog.json cannot be written: No space left"):
        write_sidecar(tmp_path / "dog.safetensors", family="sd1", activation="new")
    assert card(tmp_path / "dog.json")["activation text"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["dog.json"]
