"""What the tab's controls do: values in, values out; bad input is a sentence, and nothing is lost."""

from __future__ import annotations

import functools
import html
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_methods.checks import SettingsError
from lib_methods.dreambooth.photos.subjects import find_subjects
from lib_methods.dreambooth.settings import TrainingSettings, from_json
from lib_methods.dreambooth.tab.handlers import TabHandlers, from_controls
from lib_methods.dreambooth.tab.page import CONTROLS, FILES, SECOND
from lib_methods.jobs.files import JobFiles, deliver_to
from lib_methods.jobs.job import Jobs
from lib_methods.webui.controls import controls_of
from standalone import ROOT
from tests.dreambooth import models
from tests.dreambooth.models import picture, put

DEFAULTS = {control.name: control.first for control in controls_of(TrainingSettings)}
PLACES = {"photos": "p", "base": "b", "out": "o", "name": "rex"}
FAKE = ROOT / "tests" / "jobs" / "fake_trainer.py"


@functools.cache
def base_model() -> bytes:
    """The file of a tiny checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        return models.write(Path(folder)).read_bytes()


class Lists:
    """A host with one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "base.safetensors").write_bytes(base_model())
        self.looked = 0

    def checkpoints(self) -> list[str]:
        return ["base.safetensors [abc]"]

    def loaded(self) -> str:
        return "base.safetensors [abc]"

    def checkpoint_file(self, title: object) -> Path:
        if title != self.loaded():
            raise SettingsError("The base model no longer exists. Choose another one.")
        return self.folder / "base.safetensors"

    def checkpoint_title(self, file: Path) -> str:
        return f"{file.name} [def]"

    def cascades(self) -> dict[str, Path]:
        return {"IF (pixel cascade)": self.folder / "IF"} if (self.folder / "IF").is_dir() else {}

    def loras(self) -> list[str]:
        return ["old.safetensors"]

    def lora_file(self, name: object) -> Path:
        if name not in self.loras():
            raise SettingsError("The LoRA to continue from no longer exists. Choose another one.")
        return self.folder / str(name)

    def folder_of(self, kind: str) -> Path:
        return self.folder / kind

    def refresh(self) -> None:
        self.looked += 1


class Room:
    def release(self, why: str) -> None:
        """There is no model."""

    def restore(self) -> None:
        """There is no model."""


@pytest.fixture
def handlers(tmp_path: Path) -> TabHandlers:
    lists = Lists(tmp_path)
    trainings = Jobs(tmp_path / "data", Room(), deliver_to(lists.folder_of), worker=FAKE)
    machine = SimpleNamespace(
        device=lambda: torch.device("cpu"), memory=lambda device, occupied: None, may_compute=lambda device: True
    )
    return TabHandlers(trainings, lists, machine)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    (tmp_path / "drop").mkdir()
    return [put(tmp_path / "drop", f"IMG_{number}.png", seed=number) for number in range(4)]


def values(**changed: Any) -> list[Any]:
    """The controls as they are on a new page, with some changed."""
    fresh = {
        **DEFAULTS,
        "class_noun": "dog",
        "base": "base.safetensors [abc]",
        "continue_from": "",
        "sample_prompts": "",
    }
    fresh.update(dict.fromkeys(FILES), second_class_noun="", second_identifier="")
    return [{**fresh, **changed}[name] for name in CONTROLS]


def test_every_control_is_a_setting() -> None:
    settings = from_json({**from_controls(values()), **PLACES})
    assert settings.class_noun == "dog"
    extra = {name for name in CONTROLS if name in FILES or name.startswith(SECOND)}
    for name in set(CONTROLS) - {"base", "name", "class_noun", "sample_prompts", "continue_from"} - extra:
        assert getattr(settings, name) == DEFAULTS[name], name


def test_pages_give_whole_numbers_as_fractions_and_prompts_as_lines() -> None:
    request = {"class_noun": "dog", "steps": 300.0, "rate": 1, "sample_prompts": "a {subject}\n\n  on a beach  \n"}
    settings = from_json({**request, **PLACES})
    assert (settings.steps, settings.rate) == (300, 1.0)
    assert isinstance(settings.steps, int)
    assert settings.sample_prompts == ("a {subject}", "on a beach")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"class_noun": " "}, "what the subject is"),
        ({"class_noun": "[dog]"}, "no brackets"),
        ({"class_noun": 5}, "text"),
        ({"base": "gone"}, "no longer exists"),
        ({"steps": -1}, "Steps must be"),
        ({"steps": 1.5}, "whole number"),
        ({"rate": float("nan")}, "Learning rate"),
        ({"kind": "huge"}, "one of"),
        ({"kind": "full", "prior": "model"}, "frozen model"),
        ({"resolution": 100}, "multiple of 8"),
        ({"name": "../../etc"}, "valid file name"),
        ({"name": "CON"}, "valid file name"),
        ({"name": "rex."}, "valid file name"),
        ({"name": "nul .txt"}, "valid file name"),
        ({"name": "COM\u00b9"}, "valid file name"),
        ({"name": "."}, "valid file name"),
        ({"name": ".."}, "valid file name"),
        ({"name": ".rex"}, "valid file name"),
        ({"name": "a" * 81}, "valid file name"),
        ({"name": "\U0001d400" * 70}, "valid file name"),
        ({"name": "Class_Images"}, "Choose another name"),
        ({"sample_prompts": "\n".join("abcdefghijklmnopqrstuvwxyz")}, "too many sample prompts"),
        ({"identifier": "a<b"}, "no brackets"),
    ],
)
def test_bad_input_is_a_sentence_and_starts_nothing(
    handlers: TabHandlers, photos: list[Path], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    line, *_ = handlers.train([str(photo) for photo in photos], *values(**changed))
    assert said in line
    assert 'role="alert"' in line
    assert str(tmp_path) not in line
    assert not handlers.trainings.is_running
    assert not (tmp_path / "data" / "jobs").exists()


def test_photos_that_are_none_are_told(handlers: TabHandlers, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    for files, said in (
        (None, "Drop 3 to 5 photos"),
        ([str(tmp_path / "gone.png")], "no longer exist"),
        ([str(broken)], "None of the photos can be read"),
    ):
        line, *_ = handlers.train(files, *values())
        assert said in line
        assert str(tmp_path) not in line
    assert not handlers.trainings.is_running


def test_the_line_follows_the_form(handlers: TabHandlers, photos: list[Path]) -> None:
    dropped = [SimpleNamespace(name=str(photo)) for photo in photos]  # as gradio 3 gives them
    assert "Drop 3 to 5 photos" in handlers.form(None, *values(class_noun=""))[0]
    assert "Say what it is" in handlers.form(dropped, *values(class_noun=""))[0]
    line, shown = handlers.form(dropped, *values(steps=300))
    assert "4 photos of a dog become a LoRA" in line and "300 steps" in line
    assert shown.count("data:image/jpeg") == 4
    assert "3 to 5 photos work better" in handlers.form(dropped[:1], *values())[0]
    assert 'role="alert"' in handlers.form(dropped, *values(resolution=7))[0]


def test_the_plan_is_there_before_the_training_and_follows_the_form(
    handlers: TabHandlers, photos: list[Path], tmp_path: Path
) -> None:
    def line(files: Any = photos, **changed: Any) -> str:
        shown = html.unescape(handlers.form([str(file) for file in files], *values(**changed))[0])
        assert str(tmp_path) not in shown
        return shown

    first = line()
    for name in ("Steps", "Time, estimated", "Memory", "Result", "On"):
        assert f"<dt>{name}</dt>" in first
    assert "<dd>1,000</dd>" in first and "<details" in first and "become a LoRA" in first
    assert "<dd>750</dd>" in line(photos[:3]) and "<dd>30</dd>" in line(steps=30)
    assert line(rank=64) != first and line(kind="full") != first and line(batch_size=4) != first
    masks = [put(tmp_path / "drop", f"{photos[0].stem}.mask.png"), tmp_path / "drop" / f"{photos[0].stem}.txt"]
    assert "4 photos of a dog" in line([*photos, *masks]), "masks and captions are no photos"
    assert "steer-dreambooth-plan" not in line([]) and "steer-dreambooth-plan" not in line(class_noun="")
    small = line(memory=0.01)
    assert "are not enough" in small and 'role="alert"' in small and "steer-dreambooth-plan" not in small
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), "There is no base model"),
        (lambda file: file.write_bytes(file.read_bytes()[:5000]), "incomplete"),
        (lambda file: file.write_bytes(b"PK" + bytes(100)), "pickled"),
        (lambda file: file.write_bytes(models.write(file.parent / "x", in_channels=9).read_bytes()), "an inpainting"),
    ],
)
def test_a_base_model_that_cannot_be_trained_is_told(
    handlers: TabHandlers, photos: list[Path], tmp_path: Path, spoil: Any, said: str
) -> None:
    (tmp_path / "x").mkdir()
    spoil(tmp_path / "base.safetensors")
    line = handlers.form([str(photo) for photo in photos], *values())[0]
    assert said in line and 'role="alert"' in line and str(tmp_path) not in line


def test_after_train_the_plan_is_the_trainings_own(handlers: TabHandlers, photos: list[Path]) -> None:
    line, panel, *_ = handlers.train([str(photo) for photo in photos], *values())
    assert "4 photos of a dog" in line and "steer-dreambooth-plan" not in line
    assert handlers.trainings.wait(300)
    assert "a note" in handlers.look("")[0]


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_from_the_form_to_the_prompt(handlers: TabHandlers, photos: list[Path], tmp_path: Path, kind: str) -> None:
    _, usage = handlers.use()
    assert usage == ""
    line, panel, *_ = handlers.train([str(photo) for photo in photos], *values(kind=kind, name="rex"))
    assert "alert" not in line
    assert "rex" in panel
    files = JobFiles(handlers.trainings.root, "rex")
    assert sorted(path.name for path in files.photos.iterdir()) == [photo.name for photo in photos]
    told = json.loads(files.settings.read_text(encoding="utf-8"))
    assert (told["class_noun"], told["kind"], told["base"]) == ("dog", kind, str(tmp_path / "base.safetensors"))
    assert handlers.trainings.wait(300)
    panel, samples, _, cancel, resume, use, seen = handlers.look("")
    assert '"rex" is done' in html.unescape(panel)
    assert samples.count("data:image/jpeg") == 2
    assert (cancel["visible"], resume["visible"], use["visible"]) == (False, False, True)
    usage = json.loads(handlers.use()[1])
    if kind == "LoRA":
        assert usage == {"prompt": "a ohwx dog <lora:rex:1>", "checkpoint": ""}
    else:
        assert usage == {"prompt": "a ohwx dog", "checkpoint": "rex.safetensors [def]"}
    assert isinstance(handlers.lists, Lists) and handlers.lists.looked
    unchanged = handlers.look(seen)
    assert all("value" not in update for update in unchanged), "what was seen is not sent again"
    (tmp_path / kind / "rex.safetensors").unlink()
    line, usage = handlers.use()
    assert "no longer exists" in line and usage == ""


def test_the_same_name_twice_gets_a_number(handlers: TabHandlers, photos: list[Path]) -> None:
    for _ in range(2):
        handlers.train([str(photo) for photo in photos], *values())
        assert handlers.trainings.wait(300)
    record = handlers.trainings.state().record
    assert record is not None and record.name == "my-dog-2"


def test_what_stands_behind_advanced_reaches_the_training(handlers: TabHandlers, photos: list[Path]) -> None:
    (photos[0].with_suffix(".txt")).write_text("a dog on grass")
    picture().convert("L").save(photos[1].with_name("IMG_1-masklabel.png"))
    companions = [photos[0].with_suffix(".txt"), photos[1].with_name("IMG_1-masklabel.png")]
    chosen = values(
        caption_dropout=0.1,
        noise_offset=0.05,
        optimizer="prodigy",
        class_photos=[str(photos[2])],
        second_class_noun="mug",
        second_photos=[str(photos[3])],
        name="rex",
    )
    files = [str(file) for file in [*photos[:2], *companions]]
    line, _ = handlers.form(files, *chosen)
    assert "2 photos of a dog (1 with a caption, 1 with a mask) and 1 of a mug become a LoRA" in line
    handlers.train(files, *chosen)
    assert handlers.trainings.wait(300)
    settings = from_json(json.loads((handlers.trainings.root / "jobs" / "rex.settings").read_text(encoding="utf-8")))
    assert (settings.caption_dropout, settings.noise_offset, settings.optimizer) == (0.1, 0.05, "prodigy")
    subjects, _ = find_subjects(settings)
    assert [(s.concept.class_noun, len(s.photos), len(s.class_photos)) for s in subjects] == [
        ("dog", 2, 1),
        ("mug", 1, 0),
    ]
    assert subjects[0].photos[0].caption == "a dog on grass" and subjects[0].photos[1].mask_path is not None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"continue_from": "../../secret.safetensors"}, "no longer exists"),
        ({"continue_from": "old.safetensors", "kind": "full"}, "Only a LoRA"),
        ({"second_class_noun": "mug"}, "needs photos and its class"),
        ({"caption_dropout": 2}, "Caption dropout"),
    ],
)
def test_advanced_mistakes_are_sentences(
    handlers: TabHandlers, photos: list[Path], changed: dict[str, Any], said: str
) -> None:
    line, _ = handlers.form([str(photo) for photo in photos], *values(**changed))
    assert said in line and 'role="alert"' in line


def test_cancel_and_resume_from_the_page(handlers: TabHandlers, photos: list[Path]) -> None:
    assert "Training is not running" in handlers.cancel()[0]
    assert "no run to resume" in handlers.resume()[0]
    handlers.train([str(photo) for photo in photos], *values(class_noun="slow thing"))
    line, *_ = handlers.train([str(photo) for photo in photos], *values(class_noun="cat"))
    assert "already running" in line
    _, panel, _, train, cancel, *_ = handlers.cancel()
    assert "stops at the end" in panel
    assert (train["interactive"], cancel["visible"]) == (False, True)
    assert handlers.trainings.wait(300)
    panel, _, train, cancel, resume, use, _ = handlers.look("")
    assert "cancelled" in panel
    assert (train["interactive"], cancel["visible"], resume["visible"], use["visible"]) == (True, False, True, False)
    assert handlers.unfinished()["choices"]


def test_two_presses_start_one_training(handlers: TabHandlers, photos: list[Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        lines = list(pool.map(lambda _: handlers.train([str(p) for p in photos], *values(name="rex"))[0], range(4)))
    assert sum("already running" in line for line in lines) == 3
    assert len(list(JobFiles(handlers.trainings.root, "rex").photos.iterdir())) == 4
    assert handlers.trainings.wait(300)
