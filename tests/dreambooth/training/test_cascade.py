"""DreamBooth on a pixel cascade: both stages learn, in one job that can be stopped, and the result is a cascade."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline
from PIL import Image
from torch import Tensor

from lib_methods.cascade.augmentation import enlarged, low_resolution
from lib_methods.cascade.candidate import read_candidate
from lib_methods.cascade.folder import Part, is_cascade, read_cascade
from lib_methods.cascade.run import run_cascade
from lib_methods.cascade.settings import CascadeRequest, CascadeSettings
from lib_methods.cascade.text import load_tokenizer
from lib_methods.dreambooth.model import stage as stages
from lib_methods.dreambooth.model.model import TextEmbedding
from lib_methods.dreambooth.model.stage import StageModel
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.stages import prediction_of
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import LOG, LogReader
from lib_methods.safetensors import read_tensors
from tests.cascade import models
from tests.dreambooth.models import write
from tests.dreambooth.runs import settings_for, stop_after, train, write_photos

SMALL, LARGE = 32, 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages in a folder; not to be changed."""
    folder = tmp_path_factory.mktemp("cascades") / "tiny"
    models.first_stage(folder / "IF-I", sample_size=SMALL)
    models.second_stage(folder / "IF-II", sample_size=LARGE)
    return folder


def settings(tmp_path: Path, base: Path, **changes: Any) -> TrainingSettings:
    values: dict[str, Any] = {"resolution": 0, "steps": 2, "class_images": 2, "kind": "full", "identifier": "cat"}
    write_photos(tmp_path / "photos", side=LARGE)
    return settings_for(tmp_path, base, **{**values, **changes})


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")[0]


def moved(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSettings, Path]:
    """A full training of both stages, and its result."""
    asked = settings(tmp_path_factory.mktemp("full"), base, precision="fp32")
    return asked, train(asked).files[0]


def test_samples_of_stage_two_are_enlarged_photos(base: Path, tmp_path: Path) -> None:
    asked = settings(tmp_path, base, sample_every=2)
    train(asked)
    shown = LogReader(asked.out / "dog1" / LOG).read().samples
    assert [sample.step for sample in shown] == [2]
    assert shown[0].prompts == ("a cat dog",) * 3, "one of each photo"
    assert {Image.open(file).size for file in shown[0].files} == {(LARGE, LARGE)}
    first = sorted((asked.out / "dog1" / "stage1" / "samples").iterdir())
    assert [Image.open(file).size for file in first] == [(SMALL, SMALL)]


def test_both_stages_learn_in_one_job_and_the_text_encoder_stays(
    base: Path, trained: tuple[TrainingSettings, Path]
) -> None:
    asked, result = trained
    assert result == asked.out / "dog1-cascade"
    for name in ("IF-I", "IF-II"):
        changed = moved(base / name, result / name)
        assert {"conv_in.weight", "conv_out.weight", "mid_block.attentions.0.to_q.weight"} <= changed
        for file in (base / name).rglob("*"):
            inside = file.relative_to(base / name)
            if file.is_file() and inside.parts[0] != "unet":
                assert (result / name / inside).read_bytes() == file.read_bytes()
    out = weights(result / "IF-I")["conv_out.weight"] - weights(base / "IF-I")["conv_out.weight"]
    assert out[:3].any() and out[3:].any()  # the mean, and by its bound the variance
    assert not list(asked.out.rglob("*.partial"))


def test_the_result_loads_here_and_in_diffusers(trained: tuple[TrainingSettings, Path], tmp_path: Path) -> None:
    _, result = trained
    few = CascadeSettings("a cat dog", count=1, last_stage=2, steps=2, stage2_steps=2, seed=1)
    request = CascadeRequest((result,), tmp_path, settings=few)
    made = run_cascade(request, say=lambda text: None, device=CPU)
    assert {number: len(files) for number, files in made.by_stage.items()} == {1: 1, 2: 1}
    level = read_candidate(made.files[0]).settings.stage2_noise_level
    assert level == 0, "the noise level that it was trained with"
    options = {"safety_checker": None, "watermarker": None, "feature_extractor": None}
    # newer versions of the library cannot open a tokenizer that an older one wrote, which is not what is tested here
    tokenizer = load_tokenizer(read_cascade([result]).stages[0].text)  # type: ignore[arg-type]
    first = IFPipeline.from_pretrained(result / "IF-I", tokenizer=tokenizer, **options)
    second = IFSuperResolutionPipeline.from_pretrained(result / "IF-II", **options)
    for name, pipeline in (("IF-I", first), ("IF-II", second)):
        state = pipeline.unet.state_dict()
        assert all(torch.equal(state[key], value) for key, value in weights(result / name).items())


@pytest.mark.parametrize("kind", ["full", "LoRA"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_job_that_is_stopped_ends_as_one_that_is_not(base: Path, tmp_path: Path, kind: str, steps: int) -> None:
    """Stopped within stage I, and within stage II."""
    asked = settings(tmp_path, base, kind=kind, ema=0.5 if kind == "full" else 0.0)
    whole = train(asked).files[0]
    again = replace(asked, out=tmp_path / "again")
    with pytest.raises(Cancelled):
        train(again, cancelled=stop_after(steps, again))
    assert (again.out / "dog1-cascade" / "IF-I").is_dir() == (steps > 2)
    resumed = train(again, resume=True).files[0]
    for name in ("IF-I", "IF-II"):
        assert moved(whole / name, resumed / name) == set()


def test_a_lora_is_added_to_the_attention_alone(base: Path, tmp_path: Path) -> None:
    asked = settings(tmp_path, base, kind="LoRA", stages="1")
    result = train(asked).files[0]
    changed = moved(base / "IF-I", result / "IF-I")
    assert changed and all(".attentions." in name and name.endswith("weight") for name in changed)
    assert any(".add_k_proj." in name for name in changed)  # where the text comes in
    assert moved(base / "IF-II", result / "IF-II") == set()  # completes the cascade


def test_the_upscaler_alone_takes_one_command(base: Path, tmp_path: Path) -> None:
    result = train(settings(tmp_path, base, stages="2")).files[0]
    assert moved(base / "IF-I", result / "IF-I") == set()
    assert moved(base / "IF-II", result / "IF-II")
    assert not (tmp_path / "out" / "class_images").exists()  # the prior belongs to stage I


class Heard(StageModel):
    """Keeps what its UNet is shown."""

    calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def predict(self, latents: Tensor, timesteps: Tensor, text: TextEmbedding, sizes: Tensor | None = None) -> Tensor:
        kept: dict[str, Any] = {}
        hook = self.unet.register_forward_pre_hook(
            lambda module, inputs, options: kept.update(options), with_kwargs=True
        )
        out = super().predict(latents, timesteps, text, sizes)
        hook.remove()
        Heard.calls.append((latents.detach().clone(), timesteps, kept))
        return out


@pytest.mark.parametrize("level", [1e-5, 1e-3, 0.25])
def test_the_upscaler_is_shown_the_small_photo_and_its_noise_level(
    base: Path, tmp_path: Path, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the noisy target once more."""
    monkeypatch.setattr("lib_methods.dreambooth.cascade.StageModel", Heard)
    Heard.calls = []
    asked = settings(tmp_path, base, stages="2", small_image_noise=level, steps=1)
    train(asked)
    shown, timesteps, told = next(call for call in Heard.calls if call[0].shape[1] == 6 and call[0].abs().sum())
    noisy, condition = shown.chunk(2, dim=1)
    assert told["class_labels"].tolist() == pytest.approx([max(0.0, level * 1000 - 1)])
    photos = torch.stack([_pixels(path) for path in sorted((tmp_path / "photos").iterdir())])
    small = enlarged(low_resolution(photos, SMALL), (LARGE, LARGE))
    apart = (small - condition).square().mean((1, 2, 3)).sqrt().min()
    spread = (small - small.mean()).std()
    assert float(apart) < {1e-5: 0.002, 1e-3: 0.01, 0.25: 0.7}[level]
    assert (noisy - condition).square().mean().sqrt() > 0.05 * spread


def _pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def test_a_stage_predicts_what_its_scheduler_says(base: Path, tmp_path: Path) -> None:
    stage = read_cascade([base]).stages[0]
    assert prediction_of(stage) == "eps"
    velocity = replace(stage, scheduler={**stage.scheduler, "prediction_type": "v_prediction"})
    model = StageModel(velocity, CPU, torch.float32, texts=tmp_path)
    assert model.parameterization == "v" and model.variance == "learned_range"
    fixed = replace(stage, scheduler={**stage.scheduler, "variance_type": "fixed_small"})
    assert StageModel(fixed, CPU, torch.float32, texts=tmp_path).variance == ""
    with pytest.raises(UserError, match="predicts the image itself"):
        prediction_of(replace(stage, scheduler={"prediction_type": "sample"}))


def test_the_text_encoder_is_loaded_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_methods.cascade import text

    loaded: list[str] = []
    original: Callable[..., Any] = text.load

    def load(part: Part, *rest: Any) -> Any:
        loaded.append(part.name)
        return original(part, *rest)

    monkeypatch.setattr(text, "load", load)
    train(settings(tmp_path, base, sample_every=1, prior="images"))
    assert len(loaded) == 1


def test_the_plan_counts_both_stages_and_loads_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "load", lambda *arguments: pytest.fail("a network was loaded"))
    said: list[str] = []
    train(settings(tmp_path, base), plan_only=True, say=said.append)
    assert [line for line in said if "stage I (" in line] and [line for line in said if "stage II (" in line]
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="GiB are not enough"):
        train(settings(tmp_path, base, memory=0.1))


def test_bad_input_is_answered_with_a_sentence(base: Path, tmp_path: Path) -> None:
    def said(base: Path, **changes: Any) -> str:
        asked = settings(tmp_path, base, **changes)
        with pytest.raises(UserError) as raised:
            train(replace(asked, name="other"))
        shutil.rmtree(asked.out, ignore_errors=True)
        return str(raised.value)

    assert "holds no stage I " in said(base / "IF-II")
    assert "holds no stage II" in said(base / "IF-I", stages="2")
    assert "Leave it at 0" in said(base, resolution=64)
    assert "T5 is not trained" in said(base, train_text=True)
    lora = tmp_path / "some.safetensors"
    assert "part of its result" in said(base, kind="LoRA", continue_from=lora)
    Image.new("RGB", (LARGE, LARGE - 1)).save(tmp_path / "photos" / "tiny.png")
    assert "tiny.png (64x63)" in said(base) and "--stages 1" in said(base)
    assert is_cascade(base) and is_cascade(base / "IF-I") and not is_cascade(tmp_path / "photos")


def test_stable_diffusion_is_no_cascade(tmp_path: Path) -> None:
    asked = settings_for(tmp_path, stages="2")
    assert not is_cascade(asked.base)
    with pytest.raises(UserError, match="is not a cascade"):
        train(asked)
    folder = tmp_path / "models"
    write(folder, diffusers=True)
    with pytest.raises(UserError, match="latent diffusion model"):
        train(replace(asked, base=folder, name="other"))
