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
from lib_methods.dreambooth.training import latents
from lib_methods.dreambooth.training.data import TrainingData
from lib_methods.dreambooth.training.prepare import CACHE, CLASS_IMAGES
from lib_methods.dreambooth.training.state import to_json
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import LOG
from standalone import ROOT
from tests.dreambooth.models import write
from tests.dreambooth.runs import equal, events, moved, settings_for, state_tensors, stop_after, train, write_photos

WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA with text encoder and convolutions": {"train_text": True, "text_stop": 0.5, "convolutions": True},
    "LoRA with class images": {"prior": "images", "batch_size": 2, "accumulation": 2},
    "LoRA with Prodigy, dropped captions and shifted noise": {
        **{"optimizer": "prodigy", "rate": 1.0, "caption_dropout": 0.3, "noise_offset": 0.1, "warm_up": 2},
        **{"prior": "model", "train_text": True},
    },
    "full": {"kind": "full", "ema": 0.9, "schedule": "cosine", "warm_up": 2},
    "full with text encoder": {"kind": "full", "train_text": True, "prior": "off"},
    "Adafactor in the backward pass": {"kind": "full", "optimizer": "adafactor", "fused_backward": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, way: str) -> None:
    settings = settings_for(tmp_path, **WAYS[way])
    train(settings)
    stopped = moved(settings, tmp_path / "stopped")
    for steps in (1, 3):
        with pytest.raises(Cancelled, match=f"step {steps} of 4"):
            train(stopped, resume=steps > 1, cancelled=stop_after(steps, stopped))
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
@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path: Path, kind: str) -> None:
    settings = settings_for(tmp_path, kind=kind, steps=20, save_every=1, ema=0.9, prior="images")
    train(replace(settings, save_every=0))
    killed = moved(settings, tmp_path / "killed")
    chance = random.Random(kind)
    file, kills, lines = tmp_path / "settings.json", 0, chance.randint(3, 12)
    for _ in range(2):
        process = _start(killed, file, *(["--resume"] if kills else []))
        try:
            kills += _kill_once_it_has(killed, process, lines, chance.random() * 0.05)
        finally:
            process.kill()
            process.wait()
        lines = (killed.out / "dog1" / LOG).read_bytes().count(b"\n") + chance.randint(4, 14)
    assert kills
    train(killed, resume=True)
    assert equal(state_tensors(settings), state_tensors(killed))
    assert equal(load_file(settings.out / "dog1.safetensors"), load_file(killed.out / "dog1.safetensors"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_an_interrupt_ends_the_step_and_saves(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=100_000)
    process = _start(settings, tmp_path / "settings.json")
    try:
        while not events(settings, "step") and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
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


def _stopped(settings: TrainingSettings) -> TrainingSettings:
    with pytest.raises(Cancelled):
        train(settings, cancelled=stop_after(2, settings))
    return settings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rate": 2e-3}, "rate"),
        ({"rank": 4, "seed": 7}, "rank, seed"),
        ({"kind": "full", "prior": "images"}, "kind, prior"),
        ({"class_noun": "cat"}, "class noun"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    settings = _stopped(settings_for(tmp_path))
    before = state_tensors(settings)
    with pytest.raises(UserError, match=named):
        train(replace(settings, **change), resume=True)
    assert equal(before, state_tensors(settings))


def test_other_photos_are_refused(tmp_path: Path) -> None:
    settings = _stopped(settings_for(tmp_path))
    write_photos(tmp_path / "photos", 4)
    with pytest.raises(UserError, match="photos have changed"):
        train(settings, resume=True)


@pytest.mark.parametrize("harm", ["missing", "another last bit"])
def test_a_lost_class_image_is_drawn_again_and_the_training_goes_on(tmp_path: Path, harm: str) -> None:
    settings = settings_for(tmp_path, prior="images", class_images=3)
    train(settings)
    stopped = _stopped(moved(settings, tmp_path / "stopped"))
    lost = sorted((stopped.out / CLASS_IMAGES).rglob("*.png"))[1]
    if harm == "missing":
        lost.unlink()
    else:  # what another batch, or another GPU, would have made of it
        with Image.open(lost) as opened:
            other = opened.point(lambda value: value ^ 1)
        other.save(lost)
    train(stopped, resume=True)
    if harm == "missing":
        assert equal(state_tensors(settings), state_tensors(stopped))


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


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    settings = _stopped(settings_for(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="another base model"):
        train(replace(settings, base=write(tmp_path / "other", seed=5)), resume=True)


def test_moved_photos_and_base_are_the_same_ones(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    train(settings)
    stopped = _stopped(moved(settings, tmp_path / "stopped"))
    (tmp_path / "photos").rename(tmp_path / "pictures")
    (tmp_path / "elsewhere").mkdir()
    for ending in (".safetensors", ".yaml"):
        settings.base.with_suffix(ending).rename(tmp_path / "elsewhere" / f"sd1{ending}")
    train(replace(stopped, photos=tmp_path / "pictures", base=tmp_path / "elsewhere" / "sd1.safetensors"), resume=True)
    assert equal(state_tensors(settings), state_tensors(stopped))


def test_a_finished_training_can_be_made_longer(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    train(replace(settings, steps=6))
    longer = moved(settings, tmp_path / "longer")
    train(longer)
    train(replace(longer, steps=6), resume=True)
    assert equal(state_tensors(settings), state_tensors(longer))


def test_a_schedule_that_depends_on_the_steps_cannot_be_made_longer(tmp_path: Path) -> None:
    settings = _stopped(settings_for(tmp_path, schedule="linear"))
    with pytest.raises(UserError, match="number of steps cannot be changed"):
        train(replace(settings, steps=6), resume=True)


def test_a_training_that_was_stopped_before_its_first_state_starts_from_the_beginning(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, prior="images")
    train(settings)
    killed = moved(settings, tmp_path / "killed")
    with pytest.raises(Cancelled):
        train(killed, cancelled=lambda: bool(events(killed, "plan")))
    train(killed, resume=True)
    assert equal(state_tensors(settings), state_tensors(killed))


def test_a_second_training_of_that_name_does_not_overwrite_the_first(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    train(settings)
    before = (settings.out / "dog1.safetensors").read_bytes()
    with pytest.raises(UserError, match="already"):
        train(settings)
    assert (settings.out / "dog1.safetensors").read_bytes() == before
