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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib_methods.dreambooth.model.lora import LoraSet, all_places, places
from lib_methods.dreambooth.output.lora_file import kohya_names, read_lora, save_lora, tag_frequency
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.errors import UserError
from standalone.dreambooth import EngineModel, load_training_model
from standalone.engine.lora import LoadedLora, apply_loras
from standalone.engine.lora.file import LoraFolder
from standalone.engine.weights import ldm_unet_names
from tests.dreambooth.model.test_lora import randomise
from tests.dreambooth.models import FAMILIES, load, noisy, prediction, write


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
    """A LoRA as a run writes it, and the images the model generates with it."""
    lora = LoraSet(model, 4, alpha, convolutions=convolutions, text=True)
    randomise(lora)
    lora.inject()
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
    more = {"ss_tag_frequency": tag_frequency({"ohwx dog": ["a ohwx dog, grass", "a ohwx dog"]}), "ss_steps": "800"}
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
    assert json.loads(metadata["ss_tag_frequency"]) == {"ohwx dog": {"a ohwx dog": 2, "grass": 1}}
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [False, True])
def test_what_is_continued_from_a_file_is_that_lora(tmp_path: Path, family: str, text: bool) -> None:
    """Nothing trained: the same weights, ranks, alphas and layers come out, whatever the settings would have."""
    model = load(tmp_path, family)
    lora = LoraSet(model, 3, 1.5, convolutions=True, text=text, seed=5)
    randomise(lora)
    save_lora(tmp_path / "a.safetensors", lora, model, settings())
    start = read_lora(tmp_path / "a.safetensors", model)
    again = LoraSet(model, 16, 8.0, start=start.layers)
    save_lora(tmp_path / "b.safetensors", again, model, settings())
    one, other = (load_file(str(tmp_path / name)) for name in ("a.safetensors", "b.safetensors"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (told(tmp_path / "b.safetensors")["ss_network_dim"], start.shaping(settings()).true_alpha) == ("3", 1.5)
    assert all(p.requires_grad for p in again.parameters("unet"))
    assert not any(p.requires_grad for p in again.parameters("text")), "not asked to learn"


def _renamed(model: EngineModel, source: Path, style: str) -> dict[str, torch.Tensor]:
    """A file of kohya's names as diffusers or PEFT writes it, its alphas in the weights."""
    names = dict(zip(kohya_names(all_places(model), model), all_places(model)))
    parts = {
        "peft": ("base_model.model.", "lora_A.weight", "lora_B.weight"),
        "diffusers": ("unet.", "lora.down.weight", "lora.up.weight"),
        "peft in diffusers": ("unet.", "lora_A.weight", "lora_B.weight"),
    }[style]
    out = {}
    for key, tensor in load_file(str(source)).items():
        layer, _, part = key.partition(".")
        if part != "alpha":
            start = parts[0] if style != "peft" else f"{parts[0]}unet."
            out[f"{start}{names[layer].name}.{parts[1] if 'down' in part else parts[2]}"] = tensor.contiguous()
    return out


@pytest.mark.parametrize("style", ["diffusers", "peft", "peft in diffusers"])
def test_names_of_diffusers_and_peft_are_continued_from(tmp_path: Path, style: str) -> None:
    model = load(tmp_path)
    lora = LoraSet(model, 4, 4.0)
    randomise(lora)
    save_lora(tmp_path / "a.safetensors", lora, model, settings())
    save_file(_renamed(model, tmp_path / "a.safetensors", style), tmp_path / "b.safetensors")
    one, other = (read_lora(tmp_path / name, model).layers for name in ("a.safetensors", "b.safetensors"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k].down, other[k].down) and torch.equal(one[k].up, other[k].up) for k in one)


def test_a_lora_that_cannot_be_continued_says_why(tmp_path: Path) -> None:
    model = load(tmp_path)
    path = tmp_path / "a.safetensors"
    (tmp_path / "other").mkdir()
    other = load(tmp_path / "other", "sdxl")
    save_lora(path, LoraSet(other, 2), other, settings())
    with pytest.raises(UserError, match="another base model"):
        read_lora(path, model)
    save_lora(path, LoraSet(model, 2), model, settings())
    good = load_file(str(path))
    first = next(key for key in good if key.endswith("lora_down.weight"))
    layer = first.split(".")[0]
    for key, tensor, said in [
        (f"{layer}.hada_w1_a", good[first], "not a plain LoRA"),
        (f"{layer}.dora_scale", good[first], "not a plain LoRA"),
        (first, good[first] * float("nan"), "NaN"),
        (f"{layer}_more.lora_down.weight", good[first], "another base model"),
    ]:
        save_file({**good, key: tensor.clone()}, path)
        with pytest.raises(UserError, match=said):
            read_lora(path, model)
    path.write_bytes(b"<html>not found</html>" * 9)
    with pytest.raises(UserError, match="a web page, not a model"):
        read_lora(path, model)
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "gone.safetensors", model)


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
    with pytest.raises(UserError, match="dog.safetensors cannot be written. The disk is full"):
        save_lora(path, LoraSet(model, 4), model, settings())
    assert [file.name for file in path.parent.iterdir()] == ["dog.safetensors"]
    assert path.read_bytes() == b"the last good one"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path: Path, value: float) -> None:
    model = load(tmp_path)
    lora = LoraSet(model, 4)
    with torch.no_grad():
        lora.parameters()[-1].fill_(value)
    with pytest.raises(UserError, match="not finite|too large for fp16"):
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

    lora.inject()
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
