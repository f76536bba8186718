"""The command: every setting can be given, and mistakes end in a sentence and a status."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.record import from_json, to_json
from lib_methods.dreambooth.training.state import write_record
from standalone.setup import options as command_line
from standalone.setup.start import dispatch
from standalone.verbs import train_dreambooth as verb

from .training import events, settings_for

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
        ([*NEEDED, "--schedule", "wild"], "schedule"),
        ([*NEEDED, "--steps", "-3"], "number of steps"),
        ([*NEEDED, "--prior", "model", "--kind", "full"], "class images"),
        ([*NEEDED, "--identifier", "[V]"], "identifier"),
        ([*NEEDED, "--rate", "nan"], "rate"),
        ([*NEEDED, "--settings", "x.json"], "takes the place"),
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
        ('{"stepz": 1}', "no setting called stepz"),
        ('{"steps": 1}', "photos is missing"),
        ('{"photos": 1, "base": "b", "out": "o", "name": "n", "class_noun": "dog"}', "must be a path"),
        ('{"photos": "p", "base": "b", "out": "o", "name": "n", "class_noun": "dog", "steps": "x"}', "whole number"),
        ('{"photos": "p", "base": "b", "out": "o", "name": "n", "class_noun": 5}', "class_noun"),
        (
            '{"photos": "p", "base": "b", "out": "o", "name": "n", "class_noun": "dog", "sample_prompts": "x"}',
            "list of texts",
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
    with pytest.raises(DreamBoothError, match="missing"):
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
