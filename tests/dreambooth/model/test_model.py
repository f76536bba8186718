"""The model that is trained, loaded from a file or folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.errors import UserError
from standalone import ROOT
from standalone.dreambooth import load_training_model
from standalone.engine.checkpoint import load_checkpoint
from tests.dreambooth.models import FAMILIES, load, noisy, prediction, write


class Sized(list[str]):
    """Prompts with a size, as the engine's SDXL wants them."""

    width = height = 64


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_files_names_shapes_and_values(tmp_path: Path, family: str) -> None:
    path = write(tmp_path, family)
    model: TrainingModel = load_training_model(path)
    source, weights = load_file(str(path)), model.file_weights()
    assert all(torch.equal(source[name], value) for name, value in weights.items())
    left = {name for name in source if name not in weights and not name.startswith("first_stage_model.")}
    # the layer of SD2's text encoder that conditions nothing
    assert all("resblocks.2." in name or name.endswith("text_projection") for name in left)
    assert bool(left) == (family == "sd2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folders_weights_have_the_same_names(tmp_path: Path, family: str) -> None:
    file, folder = load(tmp_path, family), load(tmp_path, family, diffusers=True)
    one, other = file.file_weights(), folder.file_weights()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_predicts_what_the_host_predicts(tmp_path: Path, family: str) -> None:
    path = write(tmp_path, family)
    host = load_checkpoint(path)
    latents, timesteps = noisy()
    cond: Any = host.get_learned_conditioning(Sized(["a ohwx dog"]))
    with torch.no_grad():
        expected = host.apply_model(latents, timesteps, cond if isinstance(cond, dict) else {"c_crossattn": [cond]})
    assert torch.equal(prediction(load_training_model(path)), expected)


def test_sdxl_is_told_the_sizes_it_is_given(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    latents, timesteps = noisy(batch=2)
    text = model.embed(["a dog", "a cat"])
    own = torch.tensor([[64, 64, 0, 0, 64, 64]])
    cropped = torch.tensor([[64, 64, 0, 0, 64, 64], [900, 600, 0, 40, 64, 64]])
    with torch.no_grad():
        plain = model.predict(latents, timesteps, text)
        assert torch.equal(model.predict(latents, timesteps, text, own.expand(2, -1)), plain)
        other = model.predict(latents, timesteps, text, cropped)
    assert torch.allclose(other[0], plain[0], atol=1e-6)
    assert not torch.allclose(other[1], plain[1], atol=1e-3)


def test_text_is_plain(tmp_path: Path) -> None:
    """Signs of emphasis are letters like all others, as the caption has them."""
    model = load(tmp_path)
    assert not torch.equal(model.embed(["a (dog:1.5)"]).hidden, model.embed(["a dog"]).hidden)
    tokens, words = model.tokens("a (dog"), model.token_words()
    assert tokens[0] == words["a</w>"] and tokens[-1] == words["dog</w>"] and len(tokens) == 3
    assert model.tokens("ohwx") == [words["ohwx</w>"]]


def test_gradients_reach_unet_and_text_encoder_only_when_asked(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    latents, timesteps = noisy()
    assert not model.embed(["a dog"]).hidden.requires_grad
    for encoder in model.encoders:
        encoder.requires_grad_(True)
    model.unet.requires_grad_(True)
    model.predict(latents, timesteps, model.embed(["a dog"])).square().mean().backward()
    weights = [*model.unet.parameters(), *model.encoders[1].parameters()]
    assert sum(w.grad is not None and bool(w.grad.abs().sum() > 0) for w in weights) > len(weights) / 2
    assert all(w.grad is None for w in model.vae.parameters())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_pictures_come_back_from_their_latents(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    pixels = torch.rand(2, 3, 64, 48) * 2 - 1
    mean, std = model.moments(pixels)
    assert mean.shape == std.shape == (2, model.latent_channels, 8, 6)
    assert bool((std > 0).all())
    with torch.no_grad():
        vae: Any = model.vae
        expected = vae.encode(pixels).latent_dist
        factor = 0.13025 if family == "sdxl" else 0.18215
        assert torch.allclose(mean, expected.mean * factor) and torch.allclose(std, expected.std * factor)
        assert torch.allclose(model.decode(mean), vae.decode(expected.mean).sample.clamp(-1, 1), atol=1e-4)


def test_a_vae_that_overflows_in_half_precision_is_asked_again_in_full(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    pixels = torch.rand(1, 3, 16, 16)
    mean, std = model.moments(pixels)
    vae: Any = model.vae
    run, halves = vae.encoder.forward, []

    def overflowing(x: torch.Tensor) -> torch.Tensor:
        halves.append(x.dtype)
        return torch.full_like(run(x), float("nan")) if x.dtype == torch.bfloat16 else run(x)

    vae.to(torch.bfloat16)
    vae.encoder.forward = overflowing
    found, _ = model.moments(pixels)
    assert halves == [torch.bfloat16, torch.float32]
    assert torch.allclose(found, mean, atol=0.1)


def test_what_a_file_says_about_its_noise(tmp_path: Path) -> None:
    path = write(tmp_path, "sd2", parameterization="eps")
    plain = load_training_model(path)
    assert (plain.parameterization, plain.zero_terminal_snr, plain.resolution) == ("eps", False, 512)
    marked = {**load_file(str(path)), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    save_file(marked, str(tmp_path / "marked.safetensors"))
    model = load_training_model(tmp_path / "marked.safetensors")
    assert (model.parameterization, model.zero_terminal_snr, model.resolution) == ("v", True, 768)
    assert model.alphas_cumprod[-1] == 0 and model.alphas_cumprod.dtype == torch.float32
    assert 0 < model.model.alphas_cumprod[-1] < 1e-7, "samplers divide by it"


def test_what_a_folder_says_about_its_noise(tmp_path: Path) -> None:
    path = write(tmp_path, "sd2", diffusers=True)
    assert not load_training_model(path).zero_terminal_snr
    settings = path / "scheduler" / "scheduler_config.json"
    told = {**json.loads(settings.read_text(encoding="utf-8")), "rescale_betas_zero_snr": True}
    settings.write_text(json.dumps(told), encoding="utf-8")
    model = load_training_model(path)
    assert model.zero_terminal_snr and model.parameterization == "v"
    assert (model.name, model.resolution) == ("sd2-folder", 64)


def test_the_shipped_model_knows_its_size() -> None:
    shapes = ROOT / "models" / "shapes" / "shapes.safetensors"
    model = load_training_model(shapes)
    assert (model.name, model.family, model.resolution) == ("shapes", "sd1", 64)
    assert len(model.sha256) == 64


@pytest.mark.parametrize(
    ("channels", "kind"), [(8, "an InstructPix2Pix"), (9, "an inpainting")], ids=["instruct", "inpainting"]
)
def test_a_model_that_sees_pictures_is_refused(tmp_path: Path, channels: int, kind: str) -> None:
    with pytest.raises(UserError, match=f"is {kind} checkpoint"):
        load(tmp_path, in_channels=channels)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.x"], "Flux"),
        (["model.diffusion_model.x", "conditioner.embedders.0.model.x"], "refiner"),
        (["lora_unet_mid_block.lora_up.weight"], "LoRA"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path: Path, keys: list[str], reason: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, str(path))
    with pytest.raises(UserError, match=reason):
        load_training_model(path)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"\x80\x02pickle"])
def test_what_is_no_checkpoint_is_refused_without_its_folder(tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "broken.safetensors", tmp_path / "old.ckpt"):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_training_model(path)
        assert path.name in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_base_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no base model gone\.safetensors"):
        load_training_model(tmp_path / "gone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a diffusers checkpoint"):
        load_training_model(tmp_path / "empty")
