"""Several subjects in one run, own images of the class, a LoRA to start from: what users of other trainers expect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lib_methods.dreambooth import job
from lib_methods.dreambooth.photos.subjects import find_subjects
from lib_methods.dreambooth.settings import Concept, TrainingSettings, resolved
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import Cancelled, UserError
from standalone.dreambooth import load_training_model
from standalone.setup import options as command_line
from standalone.verbs import train_dreambooth as verb
from tests.dreambooth.models import asked
from tests.dreambooth.runs import equal, events, moved, settings_for, state_tensors, stop_after, train, write_photos


def folders(root: Path, **photos: int) -> Path:
    """Folders with so many photos, `_` in their names being a space after the first."""
    for name, count in photos.items():
        number, _, words = name[1:].partition("_")
        write_photos(root / f"{number}_{words.replace('_', ' ')}", count)
    return root


def found(photos: Path, **settings: Any) -> list[tuple[str, str, int, int]]:
    subjects, _ = find_subjects(asked(**{"identifier": "", **settings}, photos=photos))
    return [(s.concept.identifier, s.concept.class_noun, s.concept.repeats, len(s.photos)) for s in subjects]


def test_kohya_s_folders_are_subjects(tmp_path: Path) -> None:
    folders(tmp_path, _10_ohwx_dog=2, _30_olis_coffee_mug=1)
    assert found(tmp_path) == [("ohwx", "dog", 1, 2), ("olis", "coffee mug", 3, 1)]
    write_photos(tmp_path, 1)
    assert found(tmp_path)[0] == ("", "dog", 1, 1), "photos beside the folders are the settings' own subject"


@pytest.mark.parametrize(
    ("folder", "given", "expected"),
    [
        ("10_ohwx dog", {}, ("ohwx", "dog")),
        ("10_ohwx_dog", {}, ("ohwx", "dog")),
        ("5_ohwx golden retriever", {"class_noun": "golden retriever"}, ("ohwx", "golden retriever")),
        ("5_ohwx golden retriever", {"class_noun": "dog"}, ("ohwx", "dog")),
        ("5_dog", {}, ("", "dog")),
        ("5_ohwx", {}, ("ohwx", "dog")),
        ("5_sks dog", {"identifier": "ohwx"}, ("ohwx", "dog")),
    ],
)
def test_what_the_user_says_comes_before_what_a_single_folder_is_called(
    tmp_path: Path, folder: str, given: dict[str, Any], expected: tuple[str, str]
) -> None:
    write_photos(tmp_path / folder, 2)
    assert found(tmp_path, **given) == [(*expected, 1, 2)]


def test_the_command_takes_class_and_identifier_from_kohya_s_folders(tmp_path: Path) -> None:
    folders(tmp_path, _10_ohwx_dog=2)
    for photos in (tmp_path, tmp_path / "10_ohwx dog"):
        line = ["--photos", str(photos), "--base", "b", "--out", "o", "--name", "n"]
        settings = verb.settings_of(command_line.parse(["train-dreambooth", *line]))
        (subject,), _ = find_subjects(settings)
        assert (subject.concept.identifier, subject.concept.class_noun) == ("ohwx", "dog")


def test_two_subjects_of_one_name_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, _1_ohwx_dog=1, _1_ohwx_cat=1)
    with pytest.raises(UserError, match='identifier "ohwx"'):
        found(tmp_path)


def test_class_images_in_kohya_s_folders_go_with_their_class(tmp_path: Path) -> None:
    folders(tmp_path / "img", _1_ohwx_dog=1, _1_olis_cat=1, _1_phol_mug=1)
    folders(tmp_path / "reg", _1_dog=3, _1_cat=2)
    subjects, notes = find_subjects(asked(identifier="", photos=tmp_path / "img", class_folder=tmp_path / "reg"))
    assert {s.concept.class_noun: len(s.class_photos) for s in subjects} == {"dog": 3, "cat": 2, "mug": 0}
    assert any('"mug"' in note for note in notes)


def test_each_subject_gets_its_steps() -> None:
    chosen = resolved(asked(), photos=[4, 4], resolution=512, unet_parameters=860_000_000)
    assert chosen.steps == 2 * resolved(asked(), photos=[4], resolution=512, unet_parameters=860_000_000).steps
    own = resolved(asked(class_folder=Path("x")), photos=[4], resolution=512, unet_parameters=860_000_000)
    prodigy = resolved(asked(optimizer="prodigy"), photos=[4], resolution=512, unet_parameters=860_000_000)
    assert own.prior == "images" and (prodigy.rate, prodigy.text_rate) == (1.0, 1.0)


class Watched(Trainer):
    """Keeps what it was given."""

    last: Trainer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Watched.last = self


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(job, "Trainer", Watched)
    return Watched


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


def test_two_subjects_are_each_bound_to_their_name_and_their_class(tmp_path: Path, watched: type[Watched]) -> None:
    mugs = write_photos(tmp_path / "mugs", 2)
    (mugs / "photo0.txt").write_text("a {subject} on a table", encoding="utf-8")
    reg = write_photos(tmp_path / "reg", 3)
    settings = settings_for(
        tmp_path, prior="images", identifier="", concepts=(Concept(mugs, "mug", "olis", class_folder=reg),), steps=2
    )
    result = train(settings)
    data = watched.last.batches.data
    name = watched.last.settings.identifier
    assert name and name != "olis"
    assert [e.text for e in data.photos] == [f"a {name} dog"] * 3 + ["a olis mug on a table"] + ["a olis mug"] * 2
    assert [e.group for e in data.photos] == [0, 0, 0, 1, 1, 1]
    assert [(e.text, e.group) for e in data.prior] == [("a dog", 0)] * 2 + [("a mug", 1)] * 3
    told = metadata(result.files[0])
    assert told["modelspec.trigger_phrase"] == f"{name} dog, olis mug"
    card = json.loads(result.files[1].read_text(encoding="utf-8"))
    assert card["activation text"] == events(settings, "done")[0]["activation"] == f"a {name} dog, a olis mug"
    assert result.subject == events(settings, "start")[0]["subject"] == f"{name} dog, olis mug"
    (sample,) = [event for event in events(settings, "sample") if event["step"] == 2] or events(settings, "sample")[-1:]
    assert sample["prompts"] == [f"a {name} dog", "a olis mug"]
    notes = events(settings, "plan")[0]["notes"]
    assert any("olis mug: 2 photos. Captions: 1 of 2 (" in note for note in notes)
    assert any("3 class images of your own" in note for note in notes)


def test_a_run_of_several_subjects_is_gone_on_with_where_its_folders_now_are(tmp_path: Path) -> None:
    folders(tmp_path / "img", _2_ohwx_dog=1, _4_mug=1)
    settings = replace(settings_for(tmp_path, prior="model", identifier="", steps=3), photos=tmp_path / "img")
    train(settings)
    stopped = moved(settings, tmp_path / "stopped")
    with pytest.raises(Cancelled):
        train(stopped, cancelled=stop_after(2, stopped))
    (tmp_path / "img").rename(tmp_path / "elsewhere")
    train(replace(stopped, photos=tmp_path / "elsewhere"), resume=True)
    assert equal(state_tensors(settings), state_tensors(stopped))


def test_own_class_images_are_used_as_they_are(tmp_path: Path, watched: type[Watched]) -> None:
    reg = write_photos(tmp_path / "reg", 3)
    (reg / "photo1.txt").write_text("a dog on grass", encoding="utf-8")
    Image.new("RGB", (96, 48), "red").save(reg / "wide.png")
    settings = settings_for(tmp_path, class_folder=reg, steps=1)
    train(settings)
    prior = watched.last.batches.data.prior
    assert [e.text for e in prior] == ["a dog", "a dog on grass", "a dog", "a dog"]
    assert not (settings.out / "class_images").exists(), "nothing is drawn"
    model = load_training_model(settings.base)
    with Image.open(reg / "photo0.png") as opened:
        pixels = torch.tensor(list(opened.convert("RGB").getdata())).float().reshape(1, 64, 64, 3)
    mean, _ = model.moments(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(prior[0].mean, mean[0], atol=1e-4)
    (reg / "photo0.png").unlink()
    with pytest.raises(UserError, match="photos have changed"):
        train(settings, resume=True)


def test_own_class_images_need_the_prior_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prior preservation with images"):
        settings_for(tmp_path, class_folder=tmp_path, prior="model")
    with pytest.raises(UserError, match="folder of class images|photos. folder"):
        train(settings_for(tmp_path, class_folder=tmp_path / "gone"))


def first_lora(tmp_path: Path, **values: Any) -> Path:
    settings = settings_for(tmp_path, name="first", **values)
    train(settings)
    return settings.out / "first.safetensors"


def test_a_lora_is_continued_from_with_its_rank_and_layers(tmp_path: Path, watched: type[Watched]) -> None:
    before = first_lora(tmp_path, rank=3, alpha=1.5, convolutions=True, train_text=True, steps=2)
    settings = settings_for(tmp_path, base=tmp_path / "sd1.safetensors", continue_from=before, rank=16, steps=1)
    train(settings)
    one, other = load_file(before), load_file(settings.out / "dog1.safetensors")
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
    changed = {key for key in one if not torch.equal(one[key], other[key])}
    assert changed and all("lora_unet" in key for key in changed), "the text encoder was not asked to learn"
    biggest = max(float((one[key] - other[key]).abs().max()) for key in changed)
    assert biggest < 3e-3, "one step of the rate 1e-3 away from where it started"
    told = metadata(settings.out / "dog1.safetensors")
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("3", "1.5")


def test_a_continued_run_is_gone_on_with_from_the_same_lora_only(tmp_path: Path) -> None:
    before = first_lora(tmp_path, steps=1)
    settings = settings_for(tmp_path, base=tmp_path / "sd1.safetensors", continue_from=before, steps=3)
    train(settings)
    stopped = moved(settings, tmp_path / "stopped")
    with pytest.raises(Cancelled):
        train(stopped, cancelled=stop_after(2, stopped))
    with pytest.raises(UserError, match="another LoRA"):
        train(replace(stopped, continue_from=settings.out / "dog1.safetensors"), resume=True)
    moved_file = before.rename(tmp_path / "moved.safetensors")
    train(replace(stopped, continue_from=moved_file), resume=True)
    assert equal(state_tensors(settings), state_tensors(stopped))


def test_metadata_tell_what_other_programs_look_for(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, noise_offset=0.05, caption_dropout=0.1, optimizer="prodigy", rate=1.0, steps=1, prior="off"
    )
    told = metadata(train(settings).files[0])
    assert (told["ss_noise_offset"], told["ss_caption_dropout_rate"]) == ("0.05", "0.1")
    assert told["ss_optimizer"].startswith("prodigy")


@pytest.mark.parametrize("part", ["unet", "vae", "text"])
def test_a_damaged_base_model_is_named_before_anything_is_made(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path)

    def damaged(*args: Any) -> Any:
        model = load_training_model(*args)
        module = {"unet": model.unet, "vae": model.vae, "text": model.encoders[0]}[part]
        with torch.no_grad():
            next(module.parameters()).flatten()[0] = float("nan")
        return model

    with pytest.raises(UserError, match="base model sd1.* is damaged.*NaN"):
        train(settings, load_model=damaged)
    assert not events(settings, "step")


def test_settings_that_exclude_each_other_are_refused() -> None:
    def build(**values: Any) -> TrainingSettings:
        return asked(**values)

    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "full", "continue_from": Path("a.safetensors")}, "Only a LoRA"),
        ({"optimizer": "prodigy", "fused_backward": True}, "fused"),
        ({"optimizer": "prodigy", "text_rate": 0.5}, "one learning rate"),
        ({"caption_dropout": 1.5}, "Caption dropout"),
        ({"noise_offset": -0.1}, "Noise offset"),
    ]
    for values, said in cases:
        with pytest.raises(ValueError, match=said):
            build(**values)


def test_the_best_weights_are_those_of_one_subject(tmp_path: Path) -> None:
    folders(tmp_path / "img", _1_ohwx_dog=1, _1_olis_mug=1)
    settings = replace(settings_for(tmp_path, select_best=True), photos=tmp_path / "img")
    with pytest.raises(UserError, match="one subject only"):
        train(settings)
