"""The command, and what it says when something goes wrong."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_methods.dreambooth.settings import TrainingSettings, from_json, to_json
from lib_methods.dreambooth.training.state import STATE, write_record
from lib_methods.errors import UserError
from standalone.setup import options as command_line
from standalone.setup.start import dispatch
from standalone.verbs import train_dreambooth as verb
from tests.dreambooth.models import asked, write
from tests.dreambooth.runs import equal, events, settings_for, state_tensors, train

NEEDED = ["--photos", "p", "--class", "dog", "--base", "b", "--out", "o", "--name", "n"]
FLAGS = {
    "kind": ["--kind", "full"],
    "identifier": ["--identifier", "ohwx"],
    "steps": ["--steps", "7"],
    "rate": ["--rate", "1e-5"],
    "text_rate": ["--text-rate", "1e-6"],
    "batch_size": ["--batch-size", "2"],
    "accumulation": ["--accumulation", "3"],
    "train_text": ["--train-text"],
    "text_stop": ["--text-stop", "0.5"],
    "rank": ["--rank", "8"],
    "alpha": ["--alpha", "4"],
    "convolutions": ["--convolutions"],
    "schedule": ["--schedule", "cosine"],
    "warm_up": ["--warm-up", "5"],
    "weight_decay": ["--weight-decay", "0.1"],
    "clip_gradients": ["--clip-gradients", "2"],
    "prior": ["--prior", "images"],
    "prior_weight": ["--prior-weight", "0.5"],
    "class_prompt": ["--class-prompt", "a photo of a dog"],
    "class_images": ["--class-images", "50"],
    "class_steps": ["--class-steps", "10"],
    "class_folder": ["--class-folder", "reg"],
    "continue_from": ["--continue-from", "lora.safetensors"],
    "concepts": ["--concept", "mugs", "mug", "--concept", "cats", "cat", "olis", "catreg"],
    "caption_dropout": ["--caption-dropout", "0.1"],
    "noise_offset": ["--noise-offset", "0.05"],
    "snr_gamma": ["--snr-gamma", "0"],
    "resolution": ["--resolution", "256"],
    "buckets": ["--no-buckets"],
    "flip": ["--flip"],
    "captions": ["--no-captions"],
    "also_plain": ["--no-also-plain"],
    "masks": ["--no-masks"],
    "precision": ["--precision", "bf16"],
    "optimizer": ["--optimizer", "adafactor"],
    "fused_backward": ["--fused-backward"],
    "checkpointing": ["--checkpointing"],
    "memory": ["--memory", "8GB"],
    "ema": ["--ema", "0.99"],
    "seed": ["--seed", "3"],
    "sample_every": ["--sample-every", "10"],
    "sample_prompts": ["--sample-prompt", "a {subject}", "--sample-prompt", "two"],
    "save_every": ["--save-every", "20"],
    "select_best": ["--select-best"],
    "stages": ["--stages", "1"],
    "small_image_noise": ["--small-image-noise", "0.001"],
    "saved_as": ["--saved-as", "bf16"],
}


def parse(*arguments: str) -> argparse.Namespace:
    return command_line.parse(["train-dreambooth", *arguments])


def test_every_setting_has_a_flag_that_changes_it() -> None:
    plain = verb.settings_of(parse(*NEEDED))
    assert {field.name for field in fields(TrainingSettings)} == {*FLAGS, "photos", "base", "out", "name", "class_noun"}
    for name, flags in FLAGS.items():
        chosen = verb.settings_of(parse(*NEEDED, *flags))
        assert getattr(chosen, name) != getattr(plain, name)
        assert replace(chosen, **{name: getattr(plain, name)}) == plain, f"{flags} changes more than {name}"


def test_all_flags_at_once_are_what_a_settings_file_holds(tmp_path: Path) -> None:
    flags = [flag for name, parts in FLAGS.items() if name not in ("accumulation", "continue_from") for flag in parts]
    settings = verb.settings_of(parse(*NEEDED, *flags))
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(to_json(settings)), encoding="utf-8")
    assert verb.settings_of(parse("--settings", str(file))) == settings == from_json(to_json(settings))


def test_a_link_to_the_base_model_keeps_its_own_name(tmp_path: Path) -> None:
    """Hugging Face's cache and model managers link to files without an ending, and a yaml lies beside the link."""
    (tmp_path / "0a1b2c").touch()
    link = tmp_path / "model.safetensors"
    try:
        link.symlink_to(tmp_path / "0a1b2c")
    except OSError:
        pytest.skip("this account may not make links")
    assert from_json(to_json(asked(base=link))).base == link
    assert verb.settings_of(parse(*NEEDED, "--base", str(link))).base == link


@pytest.mark.parametrize(("text", "gib"), [("8GB", 8.0), ("6", 6.0), ("11.5gib", 11.5), ("24 G", 24.0)])
def test_memory_is_said_in_gigabytes(text: str, gib: float) -> None:
    assert verb.settings_of(parse(*NEEDED, "--memory", text)).memory == gib


@pytest.mark.parametrize(
    "flags", [["--memory", "lots"], ["--memory", "-1"], ["--kind", "both"], ["--steps", "many"], ["--unknown"]]
)
def test_a_wrong_command_line_is_a_sentence(flags: list[str]) -> None:
    with pytest.raises(command_line.UsageError, match=r"--help$"):
        parse(*NEEDED, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (NEEDED[2:], "missing: --photos"),
        (NEEDED[:-2], "missing: --name"),
        ([*NEEDED[:3], " ", *NEEDED[4:]], "what the subject is"),
        ([*NEEDED, "--schedule", "wild"], "Schedule"),
        ([*NEEDED, "--steps", "-3"], "Steps must be"),
        ([*NEEDED, "--prior", "model", "--kind", "full"], "class images"),
        ([*NEEDED, "--identifier", "[V]"], "identifier"),
        ([*NEEDED, "--rate", "nan"], "rate"),
        ([*NEEDED, "--settings", "x.json"], "replaces the other"),
        (["--settings", "none.json"], "none.json"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence_and_status_1(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(parse(*flags)) == 1
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and "Traceback" not in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "one JSON object"),
        ('{"stepz": 1}', 'no field "stepz"; did you mean "steps"'),
        ('{"steps": 1}', "photos is missing"),
        ('{"photos": 1, "base": "b", "out": "o", "name": "n", "class_noun": "dog"}', "must be a path"),
        ('{"photos": "p", "base": "b", "out": "o", "name": "n", "class_noun": "dog", "steps": "x"}', "whole number"),
        ('{"photos": "p", "base": "b", "out": "o", "name": "n", "class_noun": 5}', "class noun"),
        (
            '{"photos": "p", "base": "b", "out": "o", "name": "n", "class_noun": "dog", "sample_prompts": 5}',
            "must be text",
        ),
    ],
)
def test_a_wrong_settings_file_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    file = tmp_path / "s.json"
    file.write_text(text, encoding="utf-8")
    assert dispatch(parse("--settings", str(file))) == 1
    told = capsys.readouterr().err
    assert words in told and str(tmp_path) not in told


def test_what_is_not_given_when_going_on_is_as_it_was(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rank=5)
    folder = settings.out / settings.name
    folder.mkdir(parents=True)
    write_record(folder, {"asked": to_json(settings)})
    short = ["--out", str(settings.out), "--name", settings.name, "--resume"]
    assert verb.settings_of(parse(*short)) == settings
    assert verb.settings_of(parse(*short, "--steps", "9")) == replace(settings, steps=9)
    with pytest.raises(UserError, match="missing"):
        verb.settings_of(parse("--out", str(tmp_path), "--name", "other", "--resume"))


def test_the_command_trains_and_says_where_the_result_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_for(tmp_path)
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(to_json(settings)), encoding="utf-8")
    assert dispatch(parse("--settings", str(file))) == 0
    told = capsys.readouterr().out
    assert '"ohwx dog"' in told and told.rstrip().endswith("dog1.safetensors")
    assert events(settings, "done")


def test_the_plan_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_for(tmp_path)
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(to_json(settings)), encoding="utf-8")
    assert dispatch(parse("--settings", str(file), "--plan")) == 0
    assert "4 steps" in capsys.readouterr().out and not settings.out.exists()


def _broken(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xd8\xff this is no picture")


def test_one_broken_photo_is_left_out_with_a_word_about_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=1)
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
    with pytest.raises(UserError, match=words) as caught:
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
    with pytest.raises(UserError, match="already"):
        train(settings)
    assert (settings.out / "dog1.safetensors").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="folder for the result"):
        train(settings_for(tmp_path))


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=1)
    refused: list[str] = []

    def meanwhile() -> bool:
        if not refused:
            with pytest.raises(UserError) as caught:
                train(settings, resume=True)
            refused.append(str(caught.value))
        return False

    train(settings, cancelled=meanwhile)
    assert "Another process" in refused[0]


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_a_full_disk_at_the_end_keeps_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    settings = settings_for(tmp_path, kind=kind, prior="off", steps=2)
    replace_file = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "dog1.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="--resume"):
            train(settings)
    assert not (settings.out / "dog1.safetensors").exists() and (settings.out / "dog1" / STATE).exists()
    assert train(settings, resume=True).files[0].exists()
    assert len(events(settings, "step")) == 2  # nothing was trained twice


def test_a_photo_that_breaks_while_the_training_is_stopped_does_not_harm_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=1)
    train(settings)
    before = state_tensors(settings)
    _broken(settings.photos, "photo1.png")
    with pytest.raises(UserError, match="photos have changed"):
        train(replace(settings, steps=6), resume=True)
    assert equal(before, state_tensors(settings))


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_too_little_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    settings = settings_for(tmp_path, steps=1)

    def fails(*args: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr("lib_methods.dreambooth.training.trainer.training_loss", fails)
    with pytest.raises(UserError, match="--memory 8GB"):
        train(settings)
    assert "--memory" in events(settings, "error")[-1]["text"]
