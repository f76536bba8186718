"""From photos to the file that a WebUI loads; and every bad input ends in a sentence that helps."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lib_methods.dreambooth import progress as progress_module
from lib_methods.dreambooth import showing, tensor_file
from lib_methods.dreambooth.choose import resolved
from lib_methods.dreambooth.errors import DreamBoothError, TrainingStopped
from lib_methods.dreambooth.progress import Pace, Report, duration
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.state import STATE
from standalone.dreambooth.model import load_training_model

from .models import prediction, write
from .training import equal, events, moved, settings_for, state_tensors, train


def folder_of(settings: TrainingSettings) -> Path:
    return settings.out / settings.name


def test_a_lora_comes_out_with_card_preview_and_metadata(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, alpha=1.0)
    result = train(settings)
    names = [file.name for file in result.files]
    assert names == ["dog1.safetensors", "dog1.json", "dog1.preview.png"] and result.subject == "ohwx dog"
    card = json.loads((settings.out / "dog1.json").read_text(encoding="utf-8"))
    assert card["activation text"] == "a ohwx dog" and card["sd version"] == "SD1"
    with safe_open(str(result.files[0]), "pt") as file:
        told = file.metadata()
    assert told["ss_output_name"] == "dog1" and told["ss_network_alpha"] in ("1", "1.0")
    assert told["ss_steps"] == "4" and told["ss_num_train_images"] == "3" and "ohwx dog" in told["ss_tag_frequency"]
    done = events(settings, "done")[-1]
    assert done["files"] == names and done["activation"] == "a ohwx dog"


def test_a_full_training_s_file_is_the_trained_model_and_the_rest_is_the_source(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, kind="full", rate=1e-3, saved_as="source")
    result = train(settings)
    source, new = load_file(settings.base), load_file(result.files[0])
    assert source.keys() == new.keys()
    untouched = [name for name in source if not name.startswith("model.diffusion_model.")]
    assert untouched and all(torch.equal(source[name], new[name]) for name in untouched)
    weights = {key.removeprefix("weights/unet."): v for key, v in state_tensors(settings).items() if "weights/" in key}
    again = load_training_model(result.files[0])
    own = again.unet.state_dict()
    assert weights and all(torch.equal(own[name], value) for name, value in weights.items())
    assert not torch.equal(prediction(again), prediction(load_training_model(settings.base)))


def test_averaged_weights_are_what_comes_out(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, kind="full", prior="off", ema=0.9, saved_as="fp32")
    train(settings)
    state = state_tensors(settings)
    unet = load_training_model(settings.out / "dog1.safetensors").unet
    own, names = unet.state_dict(), [name for name, _ in unet.named_parameters()]
    assert all(torch.equal(own[name], state[f"average/{n}"]) for n, name in enumerate(names))
    assert any(not torch.equal(own[name], state[f"weights/unet.{name}"]) for name in names)


def test_class_images_are_drawn_once_for_all_trainings(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, prior="images", class_images=3)
    train(settings)
    made = {file: file.stat().st_mtime_ns for file in settings.out.rglob("*.png") if "class_images" in file.parts}
    assert len(made) == 3
    train(replace(settings, name="dog2", rate=2e-3))
    assert made == {f: f.stat().st_mtime_ns for f in settings.out.rglob("*.png") if "class_images" in f.parts}


def test_the_same_seed_gives_the_same_file_and_another_one_another(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    files = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        files.append(load_file(train(moved(replace(settings, seed=seed), tmp_path / folder)).files[0]))
    assert equal(files[0], files[1]) and not equal(files[0], files[2])


def test_samples_are_the_user_s_prompts_with_the_same_seeds_each_time(tmp_path: Path) -> None:
    prompts = ("a {subject} in the snow", "a drawing of a {subject}")
    settings = settings_for(tmp_path, sample_prompts=prompts, sample_every=3)
    train(settings)
    looks = events(settings, "sample")
    assert [look["step"] for look in looks] == [3, 4]
    for look in looks:
        assert look["prompts"] == ["a ohwx dog in the snow", "a drawing of a ohwx dog"]
        assert look["seeds"] == looks[0]["seeds"]
        for name in look["files"]:
            with Image.open(folder_of(settings) / name) as picture:
                assert picture.size == (64, 64)


def test_samples_change_nothing_in_the_training(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    train(settings)
    shown = moved(replace(settings, sample_every=1), tmp_path / "shown")
    train(shown)
    assert equal(load_file(settings.out / "dog1.safetensors"), load_file(shown.out / "dog1.safetensors"))


def test_results_on_the_way_are_kept_where_asked_for(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, save_every=2, steps=5)
    train(settings)
    kept = sorted(file.name for file in (folder_of(settings) / "saved").glob("*.safetensors"))
    assert kept == ["dog1-000002.safetensors", "dog1-000004.safetensors"]
    short = moved(replace(settings, steps=2), tmp_path / "short")
    train(short)
    assert equal(load_file(folder_of(settings) / "saved" / kept[0]), load_file(short.out / "dog1.safetensors"))


class FixedJudge:
    """Gives the scores of a list, one a look."""

    templates: Sequence[str] = ("a {subject} at night",)

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores, self.prompts = list(scores), []  # type: ignore[var-annotated]

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> tuple[float, float]:
        assert pictures.shape == (len(prompts), 3, 64, 64) and -1 <= pictures.min() <= pictures.max() <= 1
        self.prompts += prompts
        return self.scores.pop(0), 1.0


def test_the_weights_that_score_best_come_out(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, select_best=True, sample_every=1, steps=4)
    judge = FixedJudge([0.1, 0.9, 0.5, 0.2])
    result = train(settings, find_judge=lambda photos, settings, device: judge)
    assert result.best_step == 2 and set(judge.prompts) == {"a ohwx dog at night"}
    two = moved(replace(settings, steps=2, select_best=False), tmp_path / "two")
    assert equal(load_file(result.files[0]), load_file(train(two).files[0]))


def test_a_training_that_no_longer_gets_better_ends_early(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, select_best=True, sample_every=1, steps=30)
    judge = FixedJudge([0.5, 0.9, *[0.3] * 28])
    result = train(settings, find_judge=lambda photos, settings, device: judge)
    assert result.best_step == 2
    assert events(settings, "step")[-1]["step"] == 2 + showing.PATIENCE


def test_without_a_judge_the_last_weights_come_out_with_a_word_about_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, select_best=True)
    assert train(settings).best_step is None
    assert any("judge samples" in line["text"] for line in events(settings, "warning"))


def test_the_plan_alone_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    said: list[str] = []
    assert train(settings, plan_only=True, say=said.append).files == ()
    assert any("4 steps" in line for line in said) and not settings.out.exists()


def test_the_log_tells_what_happens_in_its_order(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    train(settings)
    names = [line["event"] for line in events(settings)]
    order = ["start", "plan", "phase", "step", "sample", "save", "done"]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    step = events(settings, "step")[-1]
    assert step["step"] == step["steps"] == 4 and step["seconds_left"] == 0
    assert step["loss"] == pytest.approx(step["subject"] + step["prior"])


# -- bad input


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
    replace_file = tensor_file.os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "dog1.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file.os, "replace", full)
        with pytest.raises(DreamBoothError, match="--resume"):
            train(settings)
    assert not (settings.out / "dog1.safetensors").exists() and (folder_of(settings) / STATE).exists()
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


# -- the small parts


def test_what_is_left_open_is_chosen() -> None:
    asked = TrainingSettings(Path("p"), Path("b"), Path("o"), "x", "dog", kind="full")
    chosen = resolved(asked, photos=4, resolution=512, unet_parameters=860_000_000)
    assert (chosen.steps, chosen.rate, chosen.prior, chosen.resolution) == (1000, 5e-6, "images", 512)
    assert resolved(replace(asked, kind="LoRA"), photos=4, resolution=512, unet_parameters=10**9).prior == "model"
    mine = replace(asked, steps=7, rate=0.5, text_rate=0.25, prior="off", resolution=64, sample_every=3)
    assert resolved(mine, photos=4, resolution=512, unet_parameters=10) == mine


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
    report = Report(tmp_path, lambda text: None)
    report.step(3, 9, {"loss": 0.5, "subject": 0.25, "prior": 0.25}, 1e-4, 1.0)
    report.close()
    assert ("loss", 0.5, 3) in writer.seen and ("rate", 1e-4, 3) in writer.seen and writer.closed


@pytest.mark.parametrize("values", [{}, {"train_text": True, "convolutions": True}, {"kind": "full", "prior": "off"}])
def test_the_plan_foresees_the_result_s_size_and_the_time(tmp_path: Path, values: dict[str, Any]) -> None:
    settings = settings_for(tmp_path, **values)
    train(settings)
    plans = events(settings, "plan")
    size = (settings.out / "dog1.safetensors").stat().st_size
    assert plans[-1]["result_bytes"] == pytest.approx(size, rel=0.1, abs=60_000)  # names and metadata come on top
    assert plans[0]["seconds"] is None and plans[-1]["seconds"] > 0


def test_a_stop_in_the_middle_of_a_look_drops_it_and_it_is_made_up_for_later(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, select_best=True, sample_every=2)
    scores = [0.9, 0.1]
    whole = train(settings, find_judge=lambda *asked: FixedJudge(scores[:]))
    stopped = moved(settings, tmp_path / "stopped")
    asked: list[int] = []

    def in_the_first_look() -> bool:
        asked.append(len(events(stopped, "step")))
        return asked.count(2) >= 3  # asked before the look, at its first step, and now in its middle

    with pytest.raises(TrainingStopped, match="after step 2"):
        train(stopped, cancelled=in_the_first_look, find_judge=lambda *asked: FixedJudge(scores[:]))
    assert not events(stopped, "score")
    again = train(stopped, resume=True, find_judge=lambda *asked: FixedJudge(scores[:]))
    assert again.best_step == whole.best_step == 2
    assert equal(load_file(whole.files[0]), load_file(again.files[0]))


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_too_little_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    settings = settings_for(tmp_path)

    def fails(*args: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr("lib_methods.dreambooth.trainer.training_loss", fails)
    with pytest.raises(DreamBoothError, match="--memory 8GB"):
        train(settings)
    assert "--memory" in events(settings, "error")[-1]["text"]
