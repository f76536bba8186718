"""Generated samples, and the judges' scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from lib_methods.checkpoints.schedule import NoiseSchedule
from lib_methods.dreambooth.output import scores
from lib_methods.dreambooth.output.scores import ClipAndDino, Embedder, JudgeOfPhotos, find_judge, load_judge
from lib_methods.dreambooth.photos.image import open_photo
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.sampler import generate, solve
from lib_methods.errors import UserError
from standalone import ROOT
from standalone.engine.model import alpha_schedule
from tests.dreambooth.models import FAMILIES, load

SCHEDULE = alpha_schedule(NoiseSchedule())
ZERO_SNR = torch.from_numpy(NoiseSchedule(zero_terminal_snr=True).alphas_cumprod()).float()


def toy(latents: Tensor, time: int) -> Tensor:
    """A model with something to solve: not linear in the latents, changing with time."""
    return torch.tanh(latents * (0.3 + time / 1000)) + 0.1 * torch.sin(latents.roll(1, -1) * 3)


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_it_is_the_solver_of_diffusers(parameterization: str, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if parameterization == "v" else "epsilon",
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = noise
    for time in scheduler.timesteps:
        expected = scheduler.step(toy(expected, int(time)), time, expected).prev_sample
    found = solve(toy, noise, SCHEDULE, parameterization, steps)
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-4)


def test_more_steps_come_nearer_to_the_solution() -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    exact = solve(toy, noise, SCHEDULE, "eps", 900)
    errors = [float((solve(toy, noise, SCHEDULE, "eps", steps) - exact).abs().mean()) for steps in (5, 20, 80)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_a_schedule_down_to_no_signal_is_solved(parameterization: str) -> None:
    noise = torch.randn(1, 4, 8, 8)
    found = solve(toy, noise, ZERO_SNR, parameterization, 20)
    assert bool(torch.isfinite(found).all())
    # without signal a model of v says minus the picture at once, whatever the noise
    perfect: Callable[[Tensor, int], Tensor] = lambda x, t: -torch.ones_like(x)  # noqa: E731
    if parameterization == "v":
        one = solve(perfect, noise, ZERO_SNR, "v", 1)
        assert torch.allclose(one, torch.ones_like(one))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_the_same_in_any_company(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    prompts, seeds = ["a dog", "a ohwx dog in the snow", "a cat"], [7, 8, 9]
    together = generate(model, prompts, size=(48, 64), steps=3, cfg_scale=4.0, seeds=seeds)
    assert together.shape == (3, 3, 64, 48) and together.abs().max() <= 1 and together.dtype == torch.float32
    for index in range(3):
        alone = generate(model, [prompts[index]], size=(48, 64), steps=3, cfg_scale=4.0, seeds=[seeds[index]])
        assert torch.allclose(alone[0], together[index], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_guidance_leads_away_from_the_empty_prompt(tmp_path: Path) -> None:
    model = load(tmp_path)

    def made(prompt: str, cfg_scale: float) -> Tensor:
        return generate(model, [prompt], size=(64, 64), steps=2, seeds=[1], cfg_scale=cfg_scale)

    assert not torch.equal(made("a dog", 3.0), made("a dog", 1.0))
    # guided away from itself a prompt stays what it is
    assert torch.allclose(made("", 3.0), made("", 1.0), atol=1e-4)


def test_a_prompt_longer_than_one_chunk_is_drawn(tmp_path: Path) -> None:
    model = load(tmp_path)
    long = generate(model, ["a dog " * 60], size=(64, 64), steps=1, seeds=[1])
    assert not torch.allclose(long, generate(model, ["a dog " * 30], size=(64, 64), steps=1, seeds=[1]), atol=1e-3)


def test_a_stop_from_outside_ends_it(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def each_step(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(load(tmp_path), ["a dog"], size=(64, 64), steps=5, seeds=[1], each_step=each_step)
    assert seen == [(1, 5), (2, 5)]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    model = load(tmp_path)
    with pytest.raises(UserError, match="50x64"):
        generate(model, ["a dog"], size=(50, 64), seeds=[1])
    with pytest.raises(ValueError, match="one seed for each prompt"):
        generate(model, ["a dog"], size=(64, 64), seeds=[1, 2])
    with torch.no_grad():
        model.unet.get_parameter("conv_out.weight").fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        generate(model, ["a dog"], size=(64, 64), steps=1, seeds=[1])


VOCABULARY = ROOT / "models" / "clip_bpe"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP and a tiny DINO, with random weights."""
    folder = tmp_path_factory.mktemp("judges")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip, dino = CLIPModel(config), ViTModel(ViTConfig(**small, image_size=32, patch_size=8))
        for model in (clip, dino):
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.3)
    clip.save_pretrained(folder / "clip", safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(VOCABULARY / name, folder / "clip" / name)
    (folder / "clip" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}), encoding="utf-8")
    dino.save_pretrained(folder / "dino", safe_serialization=True)
    return folder


def pictures(count: int = 3, seed: int = 0, height: int = 48, width: int = 40) -> Tensor:
    """Pictures of a few large patches."""
    patches = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return functional.interpolate(patches, (height, width), mode="nearest")


def settings(tmp_path: Path) -> TrainingSettings:
    return TrainingSettings(
        photos=tmp_path, base=tmp_path, out=tmp_path, name="rex", class_noun="dog", identifier="ohwx"
    )


def test_marks_are_cosines_of_the_networks_own_embeddings(judges: Path) -> None:
    judge = load_judge(folder=judges)
    assert isinstance(judge, ClipAndDino) and judge.dino is not None
    shown, photos = pictures(3, height=32, width=32), pictures(2, seed=1, height=32, width=32)
    mean, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network = ViTModel.from_pretrained(judges / "dino", local_files_only=True).eval()
    with torch.no_grad():
        ours, theirs = (
            network(pixel_values=(p / 2 + 0.5 - mean) / spread).last_hidden_state[:, 0] for p in (shown, photos)
        )
    expected = functional.cosine_similarity(ours[:, None], theirs[None], dim=-1).mean()
    assert judge.subject_fidelity(shown, photos) == pytest.approx(float(expected), abs=1e-5)
    assert judge.subject_fidelity(shown[:1], shown[:1]) == pytest.approx(1.0, abs=1e-5)


def test_a_picture_is_held_to_its_own_prompt(judges: Path) -> None:
    judge, shown = load_judge(folder=judges), pictures(2)
    prompts = ["a dog", "a cat on the beach at night"]
    each = [judge.prompt_fidelity(shown[i : i + 1], [prompts[i]]) for i in range(2)]
    assert judge.prompt_fidelity(shown, prompts) == pytest.approx(sum(each) / 2, abs=1e-5)
    assert judge.prompt_fidelity(shown, prompts[::-1]) != pytest.approx(sum(each) / 2, abs=1e-5)
    assert judge.prompt_fidelity(shown, ["a very long prompt " * 60] * 2) <= 1
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        judge.prompt_fidelity(shown, ["a dog"])


def test_without_dino_clip_judges_the_subject(judges: Path, tmp_path: Path) -> None:
    shutil.copytree(judges / "clip", tmp_path / "clip")
    judge = load_judge(folder=tmp_path)
    assert judge.dino is None
    shown, photos = pictures(2), pictures(2, seed=1)
    assert judge.subject_fidelity(shown, photos) == pytest.approx(
        float((judge.clip(shown) @ judge.clip(photos).T).mean())
    )


def test_nothing_there_gives_a_sentence_and_no_judge(
    tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="no CLIP to judge images by in the folder that DREAMBOOTH_JUDGES"):
            load_judge(folder=folder)
    monkeypatch.setenv(scores.JUDGES_DIR, str(tmp_path))
    assert find_judge([], settings(tmp_path), CPU) is None
    monkeypatch.delenv(scores.JUDGES_DIR)
    monkeypatch.setattr(scores, "CLIP_NAMES", (f"nobody/has-{tmp_path.name}",))
    with pytest.raises(UserError, match="Hugging Face's cache") as error:
        load_judge()
    assert str(tmp_path) not in str(error.value)


def test_a_pickle_is_not_opened(judges: Path, tmp_path: Path) -> None:
    shutil.copytree(judges / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(UserError, match="model.safetensors"):
        load_judge(folder=tmp_path)


def test_the_trainer_gets_a_judge_of_its_photos(judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(scores.JUDGES_DIR, str(judges))
    levels = ((pictures(1, height=64, width=96)[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(tmp_path / "photo.png")
    photo = open_photo(tmp_path / "photo.png")
    two = find_judge([photo, photo], settings(tmp_path), CPU)
    assert two is not None and two.photos.shape == (2, 3, 224, 224)
    judge = find_judge([photo], settings(tmp_path), CPU)
    assert judge is not None
    assert all("{subject}" in template for template in judge.templates)
    same, _ = judge.score(pictures(1, seed=0, height=64, width=96), ["a ohwx dog"])
    other, _ = judge.score(pictures(1, seed=7, height=64, width=96), ["a ohwx dog"])
    assert same > 0.98 > other >= 0


class Told(scores.ClipAndDino):
    """Marks as told, and the prompts it was asked about."""

    def __init__(self, subject: float, prompt: float) -> None:
        self.marks = subject, prompt
        self.prompts: Sequence[str] = ()

    def subject_fidelity(self, pictures: Tensor, photos: Tensor) -> float:
        return self.marks[0]

    def prompt_fidelity(self, pictures: Tensor, prompts: Sequence[str]) -> float:
        self.prompts = prompts
        return self.marks[1]


def test_prompts_are_judged_without_the_word_that_means_nothing() -> None:
    told = Told(0.5, 0.25)
    judge = JudgeOfPhotos(told, pictures(1), "ohwx")
    assert judge.score(pictures(2), ["a ohwx dog", "ohwx dog, snow"]) == (0.5, 0.25)
    assert told.prompts == ["a dog", "dog, snow"]
    assert JudgeOfPhotos(Told(-0.1, -0.2), pictures(1), "").score(pictures(1), ["a dog"]) == (0.0, 0.0)


def test_a_network_sees_the_middle_square_in_its_own_colours() -> None:
    seen: list[Tensor] = []

    def look(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels.flatten(1)

    embed = Embedder(nn.Linear(1, 1), look, 8, ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    wide = torch.full((1, 3, 16, 48), -1.0)
    wide[..., 16:32] = 1.0
    vectors = embed(wide)
    assert seen[0].shape == (1, 3, 8, 8)
    torch.testing.assert_close(seen[0], torch.full((1, 3, 8, 8), 2.0))
    assert vectors.norm(dim=-1).item() == pytest.approx(1.0)
    assert embed(pictures(9)).shape[0] == 9  # more than are looked at in one go
