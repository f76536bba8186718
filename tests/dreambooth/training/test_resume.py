"""A training that is stopped or killed at any moment ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training import data as latents
from lib_methods.dreambooth.training.batches import TrainingData
from lib_methods.dreambooth.training.data import CACHE, CLASS_IMAGES
from lib_methods.dreambooth.training.state import to_json
from lib_methods.dreambooth.training.trainer import StepReport, Trainer
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import LOG
from standalone import ROOT
from standalone.setup.start import main
from tests.dreambooth.models import write
from tests.dreambooth.runs import equal, events, moved, settings_for, state_tensors, stop_after, train, write_photos

WAYS: dict[str, dict[str, Any]] = {
    "LoRA with all that learns, class images and accumulation": {
        **{"train_text": True, "text_stop": 0.5, "convolutions": True},
        **{"prior": "images", "batch_size": 2, "accumulation": 2},
    },
    "LoRA with Prodigy, dropped captions and shifted noise": {
        **{"optimizer": "prodigy", "rate": 1.0, "caption_dropout": 0.3, "noise_offset": 0.1, "warm_up": 2},
        **{"prior": "model", "train_text": True},
    },
    "full": {"kind": "full", "ema": 0.9, "schedule": "cosine", "warm_up": 2, "train_text": True, "prior": "off"},
    "Adafactor in the backward pass": {"kind": "full", "optimizer": "adafactor", "fused_backward": True},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainingSettings:
    """A run to its end, for all who compare with it."""
    settings = settings_for(tmp_path_factory.mktemp("finished"))
    train(settings)
    return settings


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory, finished: TrainingSettings) -> TrainingSettings:
    """The same run, stopped after two of four steps, for all whose resuming is refused."""
    return _stopped(moved(finished, tmp_path_factory.mktemp("halfway")))


def _stopped(settings: TrainingSettings) -> TrainingSettings:
    with pytest.raises(Cancelled):
        train(settings, cancelled=stop_after(2, settings))
    return settings


def test_a_training_stopped_twice_goes_on_to_the_same_weights(tmp_path: Path, finished: TrainingSettings) -> None:
    stopped = moved(finished, tmp_path)
    for steps in (1, 3):
        with pytest.raises(Cancelled, match=f"step {steps} of 4"):
            train(stopped, resume=steps > 1, cancelled=stop_after(steps, stopped))
    train(stopped, resume=True)
    assert equal(state_tensors(finished), state_tensors(stopped))


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, way: str) -> None:
    settings = settings_for(tmp_path, **WAYS[way])
    train(settings)
    stopped = _stopped(moved(settings, tmp_path / "stopped"))
    train(stopped, resume=True)
    assert equal(state_tensors(settings), state_tensors(stopped))
    one, other = (load_file(s.out / "dog1.safetensors") for s in (settings, stopped))
    assert equal(one, other)


def _start(settings: TrainingSettings, file: Path, *more: str) -> subprocess.Popen[bytes]:
    file.write_text(json.dumps(to_json(settings)), encoding="utf-8")
    command = [sys.executable, str(ROOT / "run.py"), "train-dreambooth", "--settings", str(file), *more]
    environment = {**os.environ, "STEER_NO_VENV": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill_once_it_has(settings: TrainingSettings, process: subprocess.Popen[bytes], lines: int, pause: float) -> bool:
    """Kills the process `pause` seconds after its log has so many lines; False when it was done before."""
    log = settings.out / settings.name / LOG
    while process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            time.sleep(pause)
            process.kill()
            return process.wait() != 0
        time.sleep(0.005)
    return False


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, kind="full", steps=10, save_every=1, ema=0.9, prior="images")
    train(replace(settings, save_every=0))
    killed = moved(settings, tmp_path / "killed")
    chance = random.Random()
    for latest in (16, 8, 4):  # on a busy machine it may be done before anybody sees the line
        shutil.rmtree(killed.out, ignore_errors=True)
        process = _start(killed, tmp_path / "settings.json")
        try:
            if _kill_once_it_has(killed, process, lines=chance.randint(3, latest), pause=chance.random() * 0.05):
                break
        finally:
            process.kill()
            process.wait()
    else:
        pytest.fail("the process was always done before it could be killed")
    train(killed, resume=True)
    assert equal(state_tensors(settings), state_tensors(killed))
    assert equal(load_file(settings.out / "dog1.safetensors"), load_file(killed.out / "dog1.safetensors"))


@pytest.mark.slow
def test_an_interrupt_ends_the_step_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command as run.py calls it, in this process."""
    settings = settings_for(tmp_path, steps=100_000)
    (tmp_path / "settings.json").write_text(json.dumps(to_json(settings)), encoding="utf-8")
    own = Trainer.step

    def interrupted(trainer: Trainer) -> StepReport:
        done = own(trainer)
        if trainer.position == 2:
            signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setenv("STEER_NO_VENV", "1")
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main(["train-dreambooth", "--settings", str(tmp_path / "settings.json")]) == 130
    saved = events(settings, "save")[-1]["step"]
    assert saved == events(settings, "cancelled")[-1]["step"] == events(settings, "step")[-1]["step"]


def test_a_file_in_the_folder_stops_it_and_is_no_longer_there_for_the_next_time(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    cancel = settings.out / "dog1" / "cancel"

    def after_two(text: str) -> None:
        if len(events(settings, "step")) == 2:
            cancel.touch()

    def cancelled() -> bool:
        after_two("")
        return False

    with pytest.raises(Cancelled):
        train(settings, cancelled=cancelled)
    assert events(settings, "cancelled")[-1]["step"] == 2
    train(settings, resume=True)
    assert not cancel.exists()
    assert events(settings, "step")[-1]["step"] == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 4, "seed": 7, "rate": 2e-3}, "rate, rank, seed"),
        ({"kind": "full", "prior": "images"}, "kind, prior"),
        ({"class_noun": "cat"}, "class noun"),
    ],
)
def test_other_settings_are_refused_by_name(halfway: TrainingSettings, change: dict[str, Any], named: str) -> None:
    before = state_tensors(halfway)
    with pytest.raises(UserError, match=named):
        train(replace(halfway, **change), resume=True)
    assert equal(before, state_tensors(halfway))


def test_other_photos_and_another_base_model_are_refused(halfway: TrainingSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="photos have changed"):
        train(replace(halfway, photos=write_photos(tmp_path / "photos", 4)), resume=True)
    with pytest.raises(UserError, match="another base model"):
        train(replace(halfway, base=write(tmp_path, seed=5, levels=1)), resume=True)


def test_a_lost_class_image_is_drawn_again_and_the_training_goes_on(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, prior="images", class_images=3)
    train(settings)
    stopped = moved(settings, tmp_path / "stopped")
    with pytest.raises(Cancelled):  # before its first state: then it starts from the beginning
        train(stopped, cancelled=lambda: bool(events(stopped, "plan")))
    with pytest.raises(Cancelled):
        train(stopped, resume=True, cancelled=stop_after(2, stopped))
    another_bit = moved(settings, tmp_path / "another_bit")
    shutil.copytree(stopped.out, another_bit.out)
    _class_image(stopped).unlink()
    train(stopped, resume=True)
    assert equal(state_tensors(settings), state_tensors(stopped))
    with Image.open(_class_image(another_bit)) as opened:  # as another batch, or another GPU, would have made it
        other = opened.point(lambda value: value ^ 1)
    other.save(_class_image(another_bit))
    train(another_bit, resume=True)


def _class_image(settings: TrainingSettings) -> Path:
    return sorted((settings.out / CLASS_IMAGES).rglob("*.png"))[1]


def test_latents_encoded_a_second_time_do_not_make_it_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = _stopped(settings_for(tmp_path))
    shutil.rmtree(stopped.out / "dog1" / CACHE)
    plain = latents._moments

    def rounded_otherwise(*args: Any) -> Any:
        mean, std = plain(*args)
        return mean * (1 + 1e-7), std

    monkeypatch.setattr(latents, "_moments", rounded_otherwise)
    train(stopped, resume=True)


def test_a_state_of_an_older_version_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path, prior="images")
    plain = TrainingData.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(TrainingData, "fingerprint", lambda self, *, bits=True: plain(self, bits=True))
        _stopped(settings)
    train(settings, resume=True)
    assert events(settings, "done")


def test_moved_photos_and_base_are_the_same_ones(
    tmp_path: Path, finished: TrainingSettings, halfway: TrainingSettings
) -> None:
    stopped = moved(halfway, tmp_path / "out")
    shutil.copytree(halfway.out, stopped.out)
    photos = shutil.copytree(halfway.photos, tmp_path / "pictures")
    for ending in (".safetensors", ".yaml"):
        shutil.copy(halfway.base.with_suffix(ending), tmp_path / f"renamed{ending}")
    train(replace(stopped, photos=photos, base=tmp_path / "renamed.safetensors"), resume=True)
    assert equal(state_tensors(finished), state_tensors(stopped))


def test_a_finished_training_can_be_made_longer(tmp_path: Path, finished: TrainingSettings) -> None:
    settings = settings_for(tmp_path, steps=6)
    train(settings)
    longer = moved(finished, tmp_path / "longer")
    shutil.copytree(finished.out, longer.out)
    train(replace(longer, steps=6), resume=True)
    assert equal(state_tensors(settings), state_tensors(longer))


def test_a_schedule_that_depends_on_the_steps_cannot_be_made_longer(tmp_path: Path) -> None:
    settings = _stopped(settings_for(tmp_path, schedule="linear"))
    with pytest.raises(UserError, match="number of steps cannot be changed"):
        train(replace(settings, steps=6), resume=True)


def test_a_second_training_of_that_name_does_not_overwrite_the_first(finished: TrainingSettings) -> None:
    before = (finished.out / "dog1.safetensors").read_bytes()
    with pytest.raises(UserError, match="already"):
        train(finished)
    assert (finished.out / "dog1.safetensors").read_bytes() == before
