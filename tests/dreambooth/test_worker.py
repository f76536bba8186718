"""The real process with the real trainer, on a tiny model: it ends with a result, and with the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib_methods.dreambooth.output.delivery import deliver_to
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.record import to_json
from lib_methods.jobs.files import JobFiles, Record, save_record
from lib_methods.jobs.job import Jobs
from lib_methods.jobs.process import STOPPED, WORKER, is_held
from tests.dreambooth.pictures import put
from tests.standalone import tiny

pytestmark = pytest.mark.slow
PATIENCE = 300.0  # a busy machine


class Room:
    def release(self) -> None:
        """There is no model."""

    def restore(self) -> None:
        """There is no model."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.safetensors"
    tiny.write_file(tiny.build("sd1"), path)
    return path


def asked(root: Path, base: Path, steps: int) -> TrainingSettings:
    files = JobFiles(root, "rex")
    files.photos.mkdir(parents=True)
    for number in range(3):
        put(files.photos, f"{number}.png", 64, 64, number)
    return TrainingSettings(
        photos=files.photos, base=base, out=files.out, name="rex", class_noun="dog", steps=steps, resolution=64,
        sample_every=steps,
    )  # fmt: skip


def test_a_lora_by_the_real_trainer(tmp_path: Path, base: Path) -> None:
    trainings = Jobs(tmp_path / "data", Room(), deliver_to(lambda kind: tmp_path / kind))
    wanted = asked(tmp_path / "data", base, 3)
    trainings.start(wanted.name, wanted.kind, to_json(wanted))
    assert trainings.wait(PATIENCE)
    state = trainings.state()
    assert state.record is not None
    assert (state.record.status, state.record.error) == ("done", "")
    assert state.record.results[0] == "rex.safetensors"
    assert state.record.prompt.startswith("a ") and state.record.prompt.endswith(" dog")
    assert (tmp_path / "LoRA" / "rex.safetensors").is_file()
    assert sorted(state.progress.losses) == [1, 2, 3]
    plan = state.progress.of("plan")
    assert plan["steps"] == 3 and plan["bytes"] > 0 and plan["device"]
    assert state.progress.samples and state.progress.samples[-1].files[0].is_file()


def test_what_the_trainer_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    broken = tmp_path / "base.safetensors"
    broken.write_bytes(b"no weights")
    trainings = Jobs(tmp_path / "data", Room(), deliver_to(lambda kind: tmp_path / kind))
    wanted = asked(tmp_path / "data", broken, 3)
    trainings.start(wanted.name, wanted.kind, to_json(wanted))
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "failed"
    assert "base.safetensors" in record.error
    assert str(tmp_path) not in record.error and "internal" not in record.error


def test_a_training_ends_with_its_host_and_keeps_its_state(tmp_path: Path, base: Path) -> None:
    files = JobFiles(tmp_path, "rex")
    settings = asked(tmp_path, base, 100_000)
    save_record(files, Record("rex", "LoRA", "running", started=time.time()))
    files.settings.write_text(json.dumps(to_json(settings)), encoding="utf-8")
    command = [sys.executable, str(WORKER), "train-dreambooth", str(files.record)]
    with (tmp_path / "console").open("wb") as console:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=console, stderr=console, cwd=tmp_path, env=dict(os.environ)
        )
    try:
        end = time.monotonic() + PATIENCE
        while not (files.log.is_file() and '"event": "step"' in files.log.read_text(encoding="utf-8")):
            assert process.poll() is None, (tmp_path / "console").read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.2)
        assert is_held(files.lock)
        assert process.stdin is not None
        process.stdin.close()  # as when the host ends
        assert process.wait(PATIENCE) == STOPPED
    finally:
        process.kill()
        process.wait(10)
    assert not is_held(files.lock)
    assert (files.training / "state.safetensors").is_file()
    trainings = Jobs(tmp_path, Room(), deliver_to(lambda kind: tmp_path / kind))
    assert trainings.state().can_resume
