"""Trainings as processes: they start, end, are cancelled and resumed, and the host's model always comes back."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.state import to_json
from lib_methods.errors import UserError
from lib_methods.jobs import job
from lib_methods.jobs.files import CASCADE, JobFiles, Record, all_records, deliver_to, save_record
from lib_methods.jobs.job import Jobs
from standalone import ROOT

FAKE = ROOT / "tests" / "jobs" / "fake_trainer.py"
PATIENCE = 300.0  # a busy machine


class Room:
    """A host whose model can be away."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[str] = []
        self.refuses = refuses

    def release(self, why: str) -> None:
        self.calls.append("release")
        if self.refuses == "release":
            raise RuntimeError("the host is in trouble")

    def restore(self) -> None:
        self.calls.append("restore")
        if self.refuses == "restore":
            raise RuntimeError("the host is in trouble")


def settings(root: Path, noun: str = "dog", name: str = "rex", kind: str = "LoRA") -> TrainingSettings:
    files = JobFiles(root, name)
    return TrainingSettings(
        photos=files.photos, base=root / "base.safetensors", out=files.out, name=name, class_noun=noun, kind=kind
    )


def models(root: Path) -> Path:
    return root / "models"


def made(root: Path, room: Room, python: str = sys.executable) -> Jobs:
    return Jobs(root, room, deliver_to(lambda kind: models(root)), python=python, worker=FAKE)


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def trainings(tmp_path: Path, room: Room) -> Jobs:
    return made(tmp_path, room)


def start(trainings: Jobs, settings: TrainingSettings) -> None:
    trainings.start(settings.name, settings.kind, to_json(settings))


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_a_training_from_start_to_end(trainings: Jobs, room: Room, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    state = trainings.state()
    assert state.record is not None
    assert state.record.status == "done"
    assert state.record.prompt == "a ohwx dog"
    assert state.record.results == ["rex.safetensors", "rex.json", "rex.preview.png"]
    assert (models(tmp_path) / "rex.safetensors").read_bytes() == b"result"
    assert len(state.progress.losses) == 40
    assert [sample.step for sample in state.progress.samples] == [20, 40]
    assert room.calls == ["release", "restore"]


def test_the_process_gets_what_the_host_adds_and_no_foreign_packages(
    tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    names = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "HF_HUB_OFFLINE")
    worker.write_text(f"import os; print([os.environ.get(name) for name in {names!r}])", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainings = Jobs(tmp_path, room, deliver_to(lambda kind: models(tmp_path)), worker=worker)
    trainings.environment = {"CUDA_VISIBLE_DEVICES": "3"}
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    assert JobFiles(tmp_path, "rex").console.read_text(encoding="utf-8").strip() == "['3', None, '1']"


def test_only_one_runs_at_a_time(trainings: Jobs, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path, "slow thing"))
    with pytest.raises(UserError, match="already running"):
        start(trainings, settings(tmp_path, name="other"))
    with pytest.raises(UserError, match="already running"):
        trainings.resume()
    trainings.cancel()
    assert trainings.wait(PATIENCE)


def test_only_one_runs_at_a_time_of_all_kinds(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_KNOWN", {})
    deliver = deliver_to(lambda kind: models(tmp_path))
    trainings = Jobs.in_folder(tmp_path / "dreambooth", room, deliver)
    cascades = Jobs.in_folder(tmp_path / "cascade", room, deliver, kind=CASCADE)
    trainings.worker = FAKE
    start(trainings, settings(tmp_path / "dreambooth", "slow thing"))
    with pytest.raises(UserError, match="Training is already running"):
        cascades.start("red-cat", "cascade", {})
    with pytest.raises(UserError, match="The cascade is not running"):
        cascades.cancel()
    trainings.cancel()
    assert trainings.wait(PATIENCE)
    assert room.calls == ["release", "restore"]
    assert cascades.files("x").packages == trainings.files("x").packages


def test_cancel_then_resume_to_the_end(trainings: Jobs, room: Room, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path, "slow thing"))
    until(lambda: trainings.state().progress.step >= 2)
    trainings.cancel()
    assert trainings.state().stopping
    assert trainings.wait(PATIENCE)
    state = trainings.state()
    assert state.record is not None and state.record.status == "cancelled"
    assert state.can_resume
    assert trainings.unfinished() == ["rex"]
    reached = state.progress.step
    values = JobFiles(tmp_path, "rex").settings
    values.write_text(values.read_text().replace("slow thing", "dog"))
    trainings.resume()
    assert trainings.wait(PATIENCE)
    state = trainings.state()
    assert state.record is not None and state.record.status == "done"
    assert sorted(state.progress.losses) == list(range(1, 41)), "the curve has both parts"
    assert reached < 40
    assert trainings.unfinished() == []
    assert room.calls == ["release", "restore"] * 2


def test_a_second_cancel_ends_a_process_that_does_not_listen(trainings: Jobs, room: Room, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path, "stubborn thing"))
    until(lambda: trainings.state().progress.step >= 1)
    trainings.cancel()
    time.sleep(0.6)
    assert trainings.is_running
    trainings.cancel()
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "cancelled"
    assert room.calls == ["release", "restore"]


@pytest.mark.parametrize(
    ("noun", "sentence"),
    [
        ("mistake", "The base model is of another family."),
        ("silent death", "internal error"),
        ("no memory", "Out of memory"),
    ],
)
def test_a_failure_is_a_sentence_and_the_model_comes_back(
    trainings: Jobs, room: Room, tmp_path: Path, noun: str, sentence: str
) -> None:
    start(trainings, settings(tmp_path, noun))
    assert trainings.wait(PATIENCE)
    state = trainings.state()
    assert state.record is not None and state.record.status == "failed"
    assert sentence in state.record.error
    assert "/secret" not in json.dumps(state.record.__dict__)
    assert "Traceback" not in state.record.error
    assert state.can_resume
    assert room.calls == ["release", "restore"]


def test_a_process_that_cannot_be_started(tmp_path: Path, room: Room) -> None:
    trainings = made(tmp_path, room, str(tmp_path / "no-python"))
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "failed"
    assert "could not start" in record.error
    assert room.calls == ["release", "restore"]


def test_a_done_training_whose_result_cannot_be_delivered_says_so(tmp_path: Path, room: Room) -> None:
    def deliver(*args: object) -> list[str]:
        raise RuntimeError("the host is in trouble")

    trainings = Jobs(tmp_path, room, deliver, worker=FAKE)
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "done" and "could not be moved" in record.error


@pytest.mark.parametrize("step", ["release", "restore"])
def test_a_host_in_trouble_stops_nothing_but_this_training(tmp_path: Path, step: str) -> None:
    room = Room(step)
    trainings = made(tmp_path, room)
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == ("failed" if step == "release" else "done")
    assert room.calls == ["release", "restore"]
    assert not trainings.is_running


def test_a_result_never_overwrites_another_model(trainings: Jobs, tmp_path: Path) -> None:
    models(tmp_path).mkdir()
    (models(tmp_path) / "rex.safetensors").write_bytes(b"somebody's")
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.result == "rex-2.safetensors"
    assert (models(tmp_path) / "rex.safetensors").read_bytes() == b"somebody's"


def test_a_checkpoint_gets_the_yaml_of_its_base(trainings: Jobs, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {}")
    start(trainings, settings(tmp_path, kind="full"))
    assert trainings.wait(PATIENCE)
    assert (models(tmp_path) / "rex.yaml").read_text() == "model: {}"


def test_a_name_that_is_taken_gets_a_number(trainings: Jobs, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    assert trainings.free_name("rex") == "rex-2"
    with pytest.raises(UserError, match="already"):
        start(trainings, settings(tmp_path))


def test_names_that_differ_by_case_alone_are_one(trainings: Jobs, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    assert trainings.free_name("REX") == "REX-2"
    with pytest.raises(UserError, match="already"):
        start(trainings, settings(tmp_path, name="Rex"))


def test_a_training_called_current_is_one_like_any_other(trainings: Jobs, room: Room, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path, noun="slow", name="current"))
    until(lambda: trainings.state().progress.step)
    assert trainings.is_running
    with pytest.raises(UserError, match="already running"):
        start(trainings, settings(tmp_path, name="rex"))
    trainings.cancel()
    assert trainings.wait(PATIENCE)
    assert [record.name for record in all_records(tmp_path)] == ["current"]
    assert made(tmp_path, room).state("current").record == trainings.state().record


def test_the_last_training_of_an_older_version_is_found(trainings: Jobs, room: Room, tmp_path: Path) -> None:
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    (tmp_path / "jobs" / ".current.json").rename(tmp_path / "jobs" / "current.json")
    found = made(tmp_path, room).state().record
    assert found is not None and found.name == "rex"


def test_nothing_to_cancel_or_resume(trainings: Jobs) -> None:
    assert trainings.state().record is None
    with pytest.raises(UserError):
        trainings.cancel()
    with pytest.raises(UserError):
        trainings.resume()


def test_a_name_is_never_a_path(trainings: Jobs, tmp_path: Path) -> None:
    elsewhere = JobFiles(tmp_path / "elsewhere", "rex")
    save_record(elsewhere, Record("rex", "LoRA", "cancelled"))
    with pytest.raises(UserError, match="no run to resume"):
        trainings.resume("../elsewhere/jobs/rex")
    assert not trainings.is_running


def test_another_host_finds_the_training_again(trainings: Jobs, tmp_path: Path) -> None:
    """The state is on the disk: a page or a host that comes later shows it."""
    start(trainings, settings(tmp_path))
    assert trainings.wait(PATIENCE)
    later = made(tmp_path, Room())
    state = later.state()
    assert state.record is not None and state.record.status == "done"
    assert len(state.progress.losses) == 40


@pytest.mark.parametrize("held", [False, True], ids=["its process is gone", "its process still saves"])
def test_a_training_whose_host_has_ended_can_be_resumed(tmp_path: Path, held: bool) -> None:
    files = JobFiles(tmp_path, "rex")
    files.folder.mkdir(parents=True)
    save_record(files, Record("rex", "LoRA", "running", started=time.time()))
    files.settings.write_text(json.dumps(to_json(settings(tmp_path))), encoding="utf-8")
    lock = FileLock(files.lock)
    if held:
        lock.acquire(timeout=0)
    trainings = made(tmp_path, Room())
    assert trainings.is_running == held
    lock.release()
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "cancelled"
    trainings.resume()
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "done"


def test_a_log_is_data(trainings: Jobs, tmp_path: Path) -> None:
    """Broken lines, strange values and files elsewhere are passed over."""
    files = JobFiles(tmp_path, "rex")
    files.folder.mkdir(parents=True)
    save_record(files, Record("rex", "LoRA", "done", started=1.0))
    lines = [
        "{", "[]", '{"event": 1}', '{"event": "step", "step": "x"}', '{"event": "step", "step": 3, "loss": NaN}',
        '{"event": "step", "step": 4, "steps": 9, "loss": 0.5}', '{"event": "plan", "notes": 5, "bytes": "much"}',
        '{"event": "sample", "step": 1, "files": ["../../../secret.png", "/etc/passwd", "samples/1.txt", "s.png"]}',
        '{"event": "sample", "files": 7}', '{"event": "warning"}', '{"event": "step", "step": 5, "loss": 0.',
    ]  # fmt: skip
    files.log.write_text("\n".join(lines), encoding="utf-8")
    progress = trainings.state().progress
    assert progress.losses == {4: (0.5, None)}
    assert (progress.step, progress.steps) == (4, 9)
    assert [file.name for sample in progress.samples for file in sample.files] == ["s.png"]
    with files.log.open("a", encoding="utf-8") as log:
        log.write("25}\n")
    assert trainings.state().progress.losses[5] == (0.25, None), "half a line is read when it is whole"
