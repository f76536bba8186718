"""A LoRA's file, added to the base by anyone who knows the format, gives what the trained model draws."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.lora import LoraSet, places
from lib_methods.dreambooth.lora_file import kohya_names, save_lora, tag_frequency
from lib_methods.dreambooth.settings import TrainingSettings
from standalone.dreambooth.model import EngineModel, load_training_model
from standalone.engine.ldm_keys import ldm_unet_names
from standalone.engine.lora import LoadedLora, apply_loras
from standalone.engine.lora_file import LoraFolder

from .models import FAMILIES, load, noisy, prediction, write
from .test_lora import randomise


def settings(**kwargs: Any) -> TrainingSettings:
    given = {"photos": Path("p"), "base": Path("b"), "out": Path("o"), "name": "dog", "class_noun": "dog"}
    return TrainingSettings(**{**given, "identifier": "ohwx", **kwargs})


def plain_load(model: EngineModel, path: Path) -> int:
    """Adds a LoRA to a model's weights, W + alpha / rank * up @ down, knowing kohya's names and nothing else."""
    state = load_file(str(path))
    known: dict[str, nn.Module] = {}
    for name, module in model.unet.named_modules():
        known[f"lora_unet_{name}"] = module
        ldm = ldm_unet_names(model.model.model.diffusion_model).get(f"{name}.weight", "")
        known[f"lora_unet_{ldm.removesuffix('.weight')}"] = module
    for number, encoder in enumerate(model.encoders, 1):
        prefix = "lora_te" if len(model.encoders) == 1 else f"lora_te{number}"
        for name, module in encoder.named_modules():
            found = re.search(r"encoder\.layers\..*", name)
            if found:
                known[f"{prefix}_text_model_{found[0]}"] = module
    known = {name.replace(".", "_"): module for name, module in known.items()}
    names = {key.split(".")[0] for key in state}
    with torch.no_grad():
        for name in names:
            up, down = state[f"{name}.lora_up.weight"].float(), state[f"{name}.lora_down.weight"].float()
            weight = known[name].get_parameter("weight")
            change = up.flatten(1) @ down.flatten(1) * (float(state[f"{name}.alpha"]) / len(down))
            weight.add_(change.reshape(weight.shape))
    return len(names)


def trained(model: EngineModel, alpha: float = 3.0, convolutions: bool = True) -> tuple[LoraSet, Tensor]:
    """A LoRA as a training leaves it, and what the model draws with it."""
    lora = LoraSet(model, 4, alpha, convolutions=convolutions, text=True)
    randomise(lora)
    with lora:
        return lora, prediction(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_loader_gives_the_trained_models_output(tmp_path: Path, family: str) -> None:
    base = write(tmp_path, family)
    model = load_training_model(base)
    lora, expected = trained(model)
    path = tmp_path / "Lora" / "dog.safetensors"
    save_lora(path, lora, model, settings(), dtype=torch.float32)
    other = load_training_model(base)
    assert not torch.allclose(prediction(other), expected, atol=1e-2)
    assert plain_load(other, path) == len(lora.places)
    assert torch.allclose(prediction(other), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_gives_the_trained_models_output(tmp_path: Path, family: str) -> None:
    base = write(tmp_path, family)
    model = load_training_model(base)
    lora, expected = trained(model, alpha=8.0)
    save_lora(tmp_path / "Lora" / "dog.safetensors", lora, model, settings(), dtype=torch.float32)
    found = LoraFolder(tmp_path / "Lora").find("dog")
    assert found is not None
    other = load_training_model(base)
    assert apply_loras(other.model, [LoadedLora(found)]) == []
    assert torch.allclose(prediction(other), expected, atol=1e-5)
    assert apply_loras(other.model, [LoadedLora(found, 0.5, 0.5)]) == []
    assert not torch.allclose(prediction(other), expected, atol=1e-3)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_in_half_precision_it_is_rounded_and_no_more(tmp_path: Path, dtype: torch.dtype, error: float) -> None:
    base = write(tmp_path)
    model = load_training_model(base)
    before = prediction(model)
    lora, expected = trained(model)
    path = tmp_path / "dog.safetensors"
    save_lora(path, lora, model, settings(), dtype=dtype)
    other = load_training_model(base)
    plain_load(other, path)
    change = (expected - before).norm()
    assert (prediction(other) - expected).norm() < error * change
    for key, value in load_file(str(path)).items():
        if key.endswith(".alpha"):
            assert value.shape == () and value.dtype == torch.float32 and value == 3.0
        else:
            assert value.dtype == dtype


def test_a_published_build_has_the_names_that_others_write(tmp_path: Path) -> None:
    """Names of kohya's own files, taken from published ones."""
    names = {
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_proj_in",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "lora_unet_down_blocks_0_resnets_1_time_emb_proj",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    }
    model = load(tmp_path)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    seen: Any = SimpleNamespace(unet=unet, family="sd1", encoders=model.encoders)
    found = set(kohya_names(places(seen, convolutions=True, text=True), seen))
    assert names <= found
    seen.family = "sdxl"
    asked: list[int] = []

    def unet_names() -> dict[str, str]:
        asked.append(1)
        return {key: f"model.diffusion_model.{name}" for key, name in ldm_unet_names(unet).items()}

    seen.unet_names = unet_names
    found = set(kohya_names(places(seen, convolutions=True), seen))
    assert len(asked) == 1  # it goes through the whole UNet
    assert "lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q" in found
    assert "lora_unet_output_blocks_5_2_conv" in found
    assert all(re.match(r"lora_unet_(input|middle|output)_block", name) for name in found)


def test_two_text_encoders_are_numbered(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    names = kohya_names([place for place in places(model, text=True) if place.part == "text"], model)
    assert {name[:19] for name in names} == {"lora_te1_text_model", "lora_te2_text_model"}


def told(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(
    ("family", "version", "v2"),
    [("sd1", "sd_v1", "False"), ("sd2", "sd_v2_v", "True"), ("sdxl", "sdxl_base_v1-0", "False")],
)
def test_it_says_what_the_webui_shows(tmp_path: Path, family: str, version: str, v2: str) -> None:
    model = load(tmp_path, family)
    lora = LoraSet(model, 4, 2.0, convolutions=True)
    path = tmp_path / "my dog.safetensors"
    more = {"ss_tag_frequency": tag_frequency(["a ohwx dog, grass", "a ohwx dog"]), "ss_steps": "800"}
    save_lora(path, lora, model, settings(resolution=64), more)
    metadata = told(path)
    expected = {
        "ss_base_model_version": version,
        "ss_v2": v2,
        "ss_output_name": "my dog",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_resolution": "(64, 64)",
        "ss_sd_model_name": family,
        "ss_new_sd_model_hash": model.sha256,
        "ss_steps": "800",
        "modelspec.trigger_phrase": "ohwx dog",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"]) == {"subject": {"a ohwx dog": 2, "grass": 1}}
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}


def test_its_hash_is_that_of_the_data_behind_the_header(tmp_path: Path) -> None:
    model = load(tmp_path)
    path = tmp_path / "dog.safetensors"
    save_lora(path, LoraSet(model, 4), model, settings())
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert told(path)["sshs_model_hash"] == hashlib.sha256(data[8 + length :]).hexdigest()


def test_the_same_lora_gives_the_same_file(tmp_path: Path) -> None:
    model = load(tmp_path)
    lora, _ = trained(model)
    save_lora(tmp_path / "a" / "dog.safetensors", lora, model, settings())
    save_lora(tmp_path / "b" / "dog.safetensors", lora, model, settings())
    assert (tmp_path / "a" / "dog.safetensors").read_bytes() == (tmp_path / "b" / "dog.safetensors").read_bytes()


def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path)
    path = tmp_path / "out" / "dog.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"the last good one")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DreamBoothError, match="dog.safetensors cannot be written. The disk is full"):
        save_lora(path, LoraSet(model, 4), model, settings())
    assert [file.name for file in path.parent.iterdir()] == ["dog.safetensors"]
    assert path.read_bytes() == b"the last good one"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path: Path, value: float) -> None:
    model = load(tmp_path)
    lora = LoraSet(model, 4)
    with torch.no_grad():
        lora.parameters()[-1].fill_(value)
    with pytest.raises(DreamBoothError, match="not finite|too large for fp16"):
        save_lora(tmp_path / "dog.safetensors", lora, model, settings())
    assert not (tmp_path / "dog.safetensors").exists()


def test_trained_by_gradients_the_file_holds_what_was_learnt(tmp_path: Path) -> None:
    """From zero through an optimizer into the file and back: the loss that the training reached."""
    base = write(tmp_path)
    model = load_training_model(base)
    latents, timesteps = noisy(batch=2)
    goal = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    lora = LoraSet(model, 4, convolutions=True, text=True)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-2)

    def loss(of: EngineModel) -> Tensor:
        return (of.predict(latents, timesteps, of.embed(["a ohwx dog", "a dog"])) - goal).square().mean()

    with lora:
        first = float(loss(model).detach())
        for _ in range(15):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        with torch.no_grad():
            reached = float(loss(model))
    assert reached < 0.9 * first
    save_lora(tmp_path / "dog.safetensors", lora, model, settings(), dtype=torch.float32)
    other = load_training_model(base)
    with torch.no_grad():
        assert float(loss(other)) == pytest.approx(first, rel=1e-5)
        plain_load(other, tmp_path / "dog.safetensors")
        assert float(loss(other)) == pytest.approx(reached, rel=1e-4)
