"""Every bad input, a full disk and too little memory end in a sentence that helps, and cost nothing that was saved."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.state import STATE

from .models import write
from .training import equal, events, settings_for, state_tensors, train


def _broken(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xd8\xff this is no picture")


def test_one_broken_photo_is_left_out_with_a_word_about_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    _broken(settings.photos, "broken.jpg")
    train(settings)
    assert any("broken.jpg" in line["text"] for line in events(settings, "warning"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, photos=s.photos / "none"), "photos"),
        (lambda s: replace(s, photos=_made(s.photos / "empty")), "no photos"),
        (lambda s: replace(s, photos=_only_broken(s.photos / "bad")), "None of the photos"),
        (lambda s: replace(s, base=s.base.with_name("none.safetensors")), "none.safetensors"),
        (lambda s: replace(s, base=_garbage(s.base.with_name("garbage.safetensors"))), "garbage.safetensors"),
        (lambda s: replace(s, base=write(_made(s.photos / "x"), in_channels=9)), "inpainting"),
        (lambda s: replace(s, base=write(_made(s.photos / "x"), in_channels=8)), "InstructPix2Pix"),
    ],
)
def test_bad_input_is_a_sentence_on_the_console_and_in_the_log(
    tmp_path: Path, change: Callable[[TrainingSettings], TrainingSettings], words: str
) -> None:
    settings = change(settings_for(tmp_path))
    with pytest.raises(DreamBoothError, match=words) as caught:
        train(settings)
    assert events(settings, "error")[-1]["text"] == str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not list(settings.out.glob("*.safetensors"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _only_broken(folder: Path) -> Path:
    _broken(_made(folder), "one.jpg")
    return folder


def _garbage(file: Path) -> Path:
    file.write_bytes(b"nothing of use" * 20)
    return file


def test_a_result_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    _made(settings.out)
    (settings.out / "dog1.safetensors").write_bytes(b"mine")
    with pytest.raises(DreamBoothError, match="already"):
        train(settings)
    assert (settings.out / "dog1.safetensors").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(DreamBoothError, match="folder for the result"):
        train(settings_for(tmp_path))


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    refused: list[str] = []

    def meanwhile() -> bool:
        if not refused:
            with pytest.raises(DreamBoothError) as caught:
                train(settings, resume=True)
            refused.append(str(caught.value))
        return False

    train(settings, cancelled=meanwhile)
    assert "Another process" in refused[0]


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_a_full_disk_at_the_end_keeps_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    settings = settings_for(tmp_path, kind=kind, prior="off")
    replace_file = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "dog1.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DreamBoothError, match="--resume"):
            train(settings)
    assert not (settings.out / "dog1.safetensors").exists() and (settings.out / "dog1" / STATE).exists()
    assert train(settings, resume=True).files[0].exists()
    assert len(events(settings, "step")) == 4  # nothing was trained twice


def test_a_photo_that_breaks_while_the_training_is_stopped_does_not_harm_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    train(settings)
    before = state_tensors(settings)
    _broken(settings.photos, "photo1.png")
    with pytest.raises(DreamBoothError, match="photos have changed"):
        train(replace(settings, steps=6), resume=True)
    assert equal(before, state_tensors(settings))


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_too_little_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    settings = settings_for(tmp_path)

    def fails(*args: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr("lib_methods.dreambooth.training.trainer.training_loss", fails)
    with pytest.raises(DreamBoothError, match="--memory 8GB"):
        train(settings)
    assert "--memory" in events(settings, "error")[-1]["text"]
