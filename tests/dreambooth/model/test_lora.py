"""LoRA layers change what the model generates while they are on, and nothing of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods.dreambooth.model.lora import LoraSet
from standalone.dreambooth import EngineModel, load_training_model
from tests.dreambooth.models import FAMILIES, load, noisy, prediction, write


def randomise(lora: LoraSet, seed: int = 0, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lora.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)


def snapshot(model: EngineModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_until_it_is_trained(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    before = prediction(model)
    LoraSet(model, 4, convolutions=True, text=True).inject()
    assert torch.equal(prediction(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_off_the_model_is_what_it_was(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    weights, before = snapshot(model), prediction(model)
    lora = LoraSet(model, 4, convolutions=True, text=True)
    randomise(lora)
    lora.inject()
    changed = prediction(model)
    assert not torch.allclose(changed, before, atol=1e-2)
    with lora.disabled():
        assert torch.equal(prediction(model), before)
    assert torch.equal(prediction(model), changed)
    after = snapshot(model)
    assert after.keys() == weights.keys() and all(torch.equal(after[key], weights[key]) for key in after)


def test_disabled_is_the_frozen_model(tmp_path: Path) -> None:
    model = load(tmp_path)
    before = prediction(model)
    lora = LoraSet(model, 4, text=True)
    randomise(lora)
    lora.inject()
    changed = prediction(model)
    with lora.disabled():
        with lora.disabled():
            assert torch.equal(prediction(model), before)
        assert torch.equal(prediction(model), before)
    with pytest.raises(KeyboardInterrupt), lora.disabled():
        raise KeyboardInterrupt
    assert torch.equal(prediction(model), changed)


@pytest.mark.parametrize("text", [False, True])
def test_gradients_reach_the_lora_alone(tmp_path: Path, text: bool) -> None:
    model = load(tmp_path, "sd2")
    latents, timesteps = noisy(batch=2)
    lora = LoraSet(model, 4, convolutions=True, text=text)
    randomise(lora)
    lora.inject()
    out = model.predict(latents, timesteps, model.embed(["a ohwx dog", "a dog"]))
    out.square().mean().backward()
    for part in ("unet", "text"):
        weights = lora.parameters(part)
        assert bool(weights) == (part == "unet" or text)
        assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in weights)
    assert all(weight.grad is None for weight in model.model.parameters())


def test_gradients_with_checkpointing_are_the_same(tmp_path: Path) -> None:
    model = load(tmp_path)
    latents, timesteps = noisy()
    text = model.embed(["a ohwx dog"])
    unet: Any = model.unet
    lora = LoraSet(model, 4, convolutions=True).inject()
    randomise(lora)

    def gradients() -> list[Tensor]:
        for weight in lora.parameters():
            weight.grad = None
        model.predict(latents, timesteps, text).square().mean().backward()
        return [weight.grad.clone() for weight in lora.parameters() if weight.grad is not None]

    plain = gradients()
    unet.enable_gradient_checkpointing()
    unet.train()
    assert unet.is_gradient_checkpointing
    for one, other in zip(plain, gradients(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_weights_are_in_single_precision_over_a_half_base(tmp_path: Path) -> None:
    model = load_training_model(write(tmp_path), dtype=torch.bfloat16)
    lora = LoraSet(model, 4, text=True)
    randomise(lora)
    latents, timesteps = noisy()
    lora.inject()
    out = model.predict(latents, timesteps, model.embed(["a ohwx dog"]))
    out.square().mean().backward()
    assert out.dtype == torch.float32
    assert all(w.dtype == torch.float32 and w.grad is not None for w in lora.parameters())
    assert all(w.grad.dtype == torch.float32 for w in lora.parameters() if w.grad is not None)
    assert {weight.dtype for weight in model.unet.parameters()} == {torch.bfloat16}


def test_the_first_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    model = load(tmp_path)
    torch.manual_seed(1)
    one = LoraSet(model, 4, seed=3).named_parameters()
    torch.manual_seed(2)
    same, other = LoraSet(model, 4, seed=3).named_parameters(), LoraSet(model, 4, seed=4).named_parameters()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    for key, value in one.items():
        assert bool((value == 0).all()) == key.endswith("up")


def test_it_covers_what_was_asked_for(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    plain = {place.name for place in LoraSet(model, 2).places}
    assert all(".attentions." in name for name in plain)
    assert {name.rsplit(".", 1)[-1] for name in plain} == {
        "proj_in",
        "proj_out",
        "to_q",
        "to_k",
        "to_v",
        "0",
        "2",
        "proj",
    }
    more = {place.name for place in LoraSet(model, 2, convolutions=True).places}
    layers = {n for n, m in model.unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert layers - more == {
        "conv_in",
        "conv_out",
        *(f"{part}_embedding.linear_{number}" for part in ("time", "add") for number in (1, 2)),
    }
    texts = [place for place in LoraSet(model, 2, text=True).places if place.part == "text"]
    assert {place.number for place in texts} == {0, 1}
    assert {place.name.split(".", 3)[-1] for place in texts} == {
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
        "mlp.fc1",
        "mlp.fc2",
    }
