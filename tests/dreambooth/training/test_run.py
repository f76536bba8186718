"""From photos to the file that a WebUI loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_methods.dreambooth.output.result import Result
from lib_methods.dreambooth.photos import folder as photo_folder
from lib_methods.dreambooth.photos import image as photo_image
from lib_methods.dreambooth.photos.image import bucket_for
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training import sampler
from lib_methods.dreambooth.training import samples as showing
from lib_methods.errors import Cancelled
from standalone.dreambooth import load_training_model
from tests.dreambooth.models import prediction, write
from tests.dreambooth.runs import SIDE, equal, events, moved, settings_for, state_tensors, train


def folder_of(settings: TrainingSettings) -> Path:
    return settings.out / settings.name


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSettings, Result]:
    """A LoRA's run of four steps with samples after the third and the last, for all who look at one."""
    prompts = ("a {subject} in the snow", "a drawing of a {subject}")
    settings = settings_for(tmp_path_factory.mktemp("lora"), alpha=1.0, sample_prompts=prompts, sample_every=3)
    return settings, train(settings)


def test_a_lora_comes_out_with_card_preview_and_metadata(lora: tuple[TrainingSettings, Result]) -> None:
    settings, result = lora
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
    settings = settings_for(tmp_path, kind="full", rate=1e-3, saved_as="source", steps=2)
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
    settings = settings_for(tmp_path, kind="full", prior="off", ema=0.9, saved_as="fp32", steps=3)
    train(settings)
    state = state_tensors(settings)
    unet = load_training_model(settings.out / "dog1.safetensors").unet
    own, names = unet.state_dict(), [name for name, _ in unet.named_parameters()]
    assert all(torch.equal(own[name], state[f"average/{n}"]) for n, name in enumerate(names))
    assert any(not torch.equal(own[name], state[f"weights/unet.{name}"]) for name in names)


def test_class_images_are_drawn_once_for_all_trainings(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, prior="images", class_images=3, steps=1)
    train(settings)
    made = {file: file.stat().st_mtime_ns for file in settings.out.rglob("*.png") if "class_images" in file.parts}
    assert len(made) == 3
    train(replace(settings, name="dog2", rate=2e-3))
    assert made == {f: f.stat().st_mtime_ns for f in settings.out.rglob("*.png") if "class_images" in f.parts}


def _shapes(folder: Path) -> list[tuple[int, int]]:
    sizes = []
    for file in sorted(folder.rglob("class-*.png")):
        with Image.open(file) as picture:
            sizes.append(picture.size)
    return sorted(sizes)


def test_class_images_have_the_sizes_of_the_photos(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, prior="images", class_images=6, steps=2, kind="full")
    for number, size in enumerate([(128, 64), (128, 64), (64, 128)]):  # and three squares
        Image.new("RGB", size, (200, 40 * number, 90)).save(settings.photos / f"long{number}.png")
    train(settings)
    wide = bucket_for(128, 64, SIDE)
    assert wide != (SIDE, SIDE)
    assert _shapes(settings.out) == sorted([wide] * 2 + [wide[::-1]] + [(SIDE, SIDE)] * 3)
    square = replace(settings, buckets=False, name="square")
    train(square)  # takes the squares that are there, and draws three more
    assert _shapes(settings.out) == sorted([wide] * 2 + [wide[::-1]] + [(SIDE, SIDE)] * 6)


def test_a_stopped_drawing_of_class_images_goes_on_with_those_that_are_missing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, prior="images", class_images=6, steps=2)
    Image.new("RGB", (128, 64), (200, 40, 90)).save(settings.photos / "long.png")

    def some() -> bool:
        return bool(list(settings.out.rglob("class-*.png")))

    with pytest.raises(Cancelled):
        train(settings, cancelled=some)
    made = {file: file.stat().st_mtime_ns for file in settings.out.rglob("class-*.png")}
    assert 0 < len(made) < 6
    train(settings, resume=True)
    now = {file: file.stat().st_mtime_ns for file in settings.out.rglob("class-*.png")}
    assert len(now) == 6 and made.items() <= now.items()


def test_the_same_seed_gives_the_same_file_whatever_is_shown_and_another_one_another(
    tmp_path: Path, lora: tuple[TrainingSettings, Result]
) -> None:
    settings, result = lora
    files = [load_file(result.files[0])]
    for folder, seed in (("b", 0), ("c", 1)):
        again = moved(replace(settings, seed=seed, sample_every=1, sample_prompts=()), tmp_path / folder)
        files.append(load_file(train(again).files[0]))
    assert equal(files[0], files[1]) and not equal(files[0], files[2])


def test_samples_are_the_user_s_prompts_with_the_same_seeds_each_time(lora: tuple[TrainingSettings, Result]) -> None:
    settings, _ = lora
    looks = events(settings, "sample")
    assert [look["step"] for look in looks] == [3, 4]
    for look in looks:
        assert look["prompts"] == ["a ohwx dog in the snow", "a drawing of a ohwx dog"]
        assert look["seeds"] == looks[0]["seeds"]
        for name in look["files"]:
            with Image.open(folder_of(settings) / name) as picture:
                assert picture.size == (64, 64)


def test_results_on_the_way_are_kept_where_asked_for(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, save_every=2, steps=5, prior="off")
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
    settings = settings_for(tmp_path, select_best=True, sample_prompts=("a {subject}",), sample_every=1, steps=4)
    judge = FixedJudge([0.1, 0.9, 0.5, 0.2])
    result = train(settings, find_judge=lambda photos, settings, device: judge)
    assert result.best_step == 2 and set(judge.prompts) == {"a ohwx dog at night"}
    two = moved(replace(settings, steps=2, select_best=False), tmp_path / "two")
    assert equal(load_file(result.files[0]), load_file(train(two).files[0]))


def test_a_training_that_no_longer_gets_better_ends_early(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, select_best=True, sample_prompts=("a {subject}",), sample_every=1, steps=30, prior="off"
    )
    judge = FixedJudge([0.5, 0.9, *[0.3] * 28])
    result = train(settings, find_judge=lambda photos, settings, device: judge)
    assert result.best_step == 2
    assert events(settings, "step")[-1]["step"] == 2 + showing.PATIENCE


def test_without_a_judge_the_last_weights_come_out_with_a_word_about_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, select_best=True, steps=1)
    assert train(settings).best_step is None
    assert any("score samples" in line["text"] for line in events(settings, "warning"))


def test_the_plan_alone_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    said: list[str] = []
    assert train(settings, plan_only=True, say=said.append).files == ()
    assert any("4 steps" in line for line in said) and not settings.out.exists()


def test_a_v_prediction_model_down_to_pure_noise_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base file as NoobAI's: SDXL with the empty tensors `v_pred` and `ztsnr` and no yaml."""
    base = write(tmp_path, "sdxl").with_name("noob.safetensors")
    save_file({**load_file(tmp_path / "sdxl.safetensors"), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, base)
    starts: list[list[int]] = []
    own_solve = sampler.solve

    def solve(predict: Any, latents: Tensor, alphas: Tensor, parameterization: str, *rest: Any) -> Tensor:
        times: list[int] = []

        def noted(x: Tensor, time: int) -> Tensor:
            times.append(time)
            return predict(x, time)

        assert parameterization == "v" and alphas[-1] == 0
        starts.append(times)
        return own_solve(noted, latents, alphas, parameterization, *rest)

    monkeypatch.setattr(sampler, "solve", solve)
    settings = settings_for(tmp_path, base, kind="full", prior="images", steps=2, sample_every=2)
    result = train(settings)
    assert any("v-prediction and zero terminal SNR" in note for note in events(settings, "plan")[0]["notes"])
    assert events(settings, "sample") and len(starts) > 1, "class images and samples"
    assert all(times[0] == 999 for times in starts), "they start at pure noise"
    assert {"v_pred", "ztsnr"} <= set(load_file(result.files[0]))
    again = load_training_model(result.files[0])
    assert (again.parameterization, again.zero_terminal_snr) == ("v", True)
    lora = replace(settings, name="dog2", kind="LoRA", prior="model")
    with safe_open(str(train(lora).files[0]), "pt") as file:
        told = file.metadata()
    assert (told["ss_v_parameterization"], told["ss_zero_terminal_snr"]) == ("True", "True")


def test_the_log_tells_what_happens_in_its_order(lora: tuple[TrainingSettings, Result]) -> None:
    settings, _ = lora
    names = [line["event"] for line in events(settings)]
    order = ["start", "plan", "phase", "step", "sample", "save", "done"]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    step = events(settings, "step")[-1]
    assert step["step"] == step["steps"] == 4 and step["seconds_left"] == 0
    assert step["loss"] == pytest.approx(step["subject"] + step["prior"])


@pytest.mark.parametrize("values", [{"train_text": True, "convolutions": True}, {"kind": "full", "prior": "off"}])
def test_the_plan_foresees_the_result_s_size_and_the_time(tmp_path: Path, values: dict[str, Any]) -> None:
    settings = settings_for(tmp_path, steps=1, **values)
    train(settings)
    plans = events(settings, "plan")
    size = (settings.out / "dog1.safetensors").stat().st_size
    assert plans[-1]["result_bytes"] == pytest.approx(size, rel=0.1, abs=60_000)  # names and metadata come on top
    assert plans[0]["seconds"] is None and plans[-1]["seconds"] > 0


def test_a_stop_in_the_middle_of_a_look_drops_it_and_it_is_made_up_for_later(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, select_best=True, sample_prompts=("a {subject}",), sample_every=2)
    scores = [0.9, 0.1]
    whole = train(settings, find_judge=lambda *asked: FixedJudge(scores[:]))
    stopped = moved(settings, tmp_path / "stopped")
    asked: list[int] = []

    def in_the_first_look() -> bool:
        asked.append(len(events(stopped, "step")))
        return asked.count(2) >= 3  # asked before the look, at its first step, and now in its middle

    with pytest.raises(Cancelled, match="after step 2"):
        train(stopped, cancelled=in_the_first_look, find_judge=lambda *asked: FixedJudge(scores[:]))
    assert not events(stopped, "score")
    again = train(stopped, resume=True, find_judge=lambda *asked: FixedJudge(scores[:]))
    assert again.best_step == whole.best_step == 2
    assert equal(load_file(whole.files[0]), load_file(again.files[0]))


def test_each_photo_is_decoded_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []

    def counted(name: str) -> Any:
        real = getattr(photo_image, name)

        def read_once_more(path: Path) -> Any:
            read.append((name, path.name))
            return real(path)

        return read_once_more

    for name in ("decode", "_sha256"):
        once_more = counted(name)
        for module in (photo_image, photo_folder):
            monkeypatch.setattr(module, name, once_more, raising=False)
    train(settings_for(tmp_path, steps=1, masks=False))
    names = [f"photo{number}.png" for number in range(3)]
    assert sorted(read) == sorted((way, name) for way in ("decode", "_sha256") for name in names)
