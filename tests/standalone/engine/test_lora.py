"""LoRAs change exactly the weights that they name, by what a plain merge gives, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.lora import LoadedLora, apply_loras, loaded_loras, loras_restored
from standalone.engine.lora.file import LoraFolder
from standalone.engine.lora.layer import LoraLayer
from standalone.engine.model import StableDiffusionModel
from standalone.engine.weights import read_state
from tests.standalone.loras import State, layer, plain_merge, write

Checkpoints = Callable[..., Path]

# diffusers' names of layers in the tiny SD1 model, and LDM's of the same, worked out by hand
SD1_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": "input_blocks.3.1.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "middle_block.1.transformer_blocks.0.ff.net.0.proj",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0": (
        "output_blocks.1.1.transformer_blocks.0.attn1.to_out.0"
    ),
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0.conv2": "output_blocks.2.0.out_layers.3",
}
SDXL_UNET = {
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0.conv2": "input_blocks.1.0.out_layers.3",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v": "input_blocks.3.1.transformer_blocks.1.attn2.to_v",
    "up_blocks.0.attentions.0.transformer_blocks.1.ff.net.2": "output_blocks.0.1.transformer_blocks.1.ff.net.2",
}
SD2_UNET = {"mid_block.attentions.0.proj_out": "middle_block.1.proj_out"}
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.1.mlp.fc2"]


@pytest.fixture
def model(checkpoints: Checkpoints) -> StableDiffusionModel:
    return load_checkpoint(checkpoints("sd1"))


def weights(model: StableDiffusionModel) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def named(model: StableDiffusionModel, style: str, family: str) -> dict[str, nn.Module]:
    """The layers that the tests change, by kohya's names."""
    unet = {"sd1": SD1_UNET, "sd2": SD2_UNET, "sdxl": SDXL_UNET}[family]
    found = {
        f"lora_unet_{(name if style == 'diffusers' else ldm).replace('.', '_')}": (
            model.model.diffusion_model.get_submodule(name)
        )
        for name, ldm in unet.items()
    }
    for number, encoder in enumerate(model.text_encoders, 1):
        prefix = f"lora_te{number}" if family == "sdxl" else "lora_te" if style == "diffusers" else "lora_te1"
        body = "transformer.text_model." if hasattr(encoder.transformer, "text_model") else "transformer."
        for name in TEXT[:2] if family == "sd2" else TEXT:
            found[f"{prefix}_text_model_{name.replace('.', '_')}"] = encoder.get_submodule(f"{body}{name}")
        if number == 2:
            found["lora_te2_text_projection"] = encoder.get_submodule("transformer.text_projection")
    return found


def lora_for(layers: dict[str, nn.Module], seed: int = 0, **options: object) -> State:
    state: State = {}
    for number, (name, module) in enumerate(layers.items()):
        shape = module.get_parameter("weight").shape
        kind = {
            "mid": len(shape) == 4 and number % 2 == 1,
            "alpha": None if number % 3 == 0 else 0.5 * number,
            **options,
        }
        state.update(layer(name, shape, seed + number, rank=1 + number % 4, **kind))  # type: ignore[arg-type]
    return state


def on_disk(path: Path, state: State) -> LoadedLora:
    write(path, state)
    found = LoraFolder(path.parent).find(path.stem)
    assert found is not None
    return LoadedLora(found)


@pytest.mark.parametrize("style", ["diffusers", "ldm"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_weights_are_those_of_a_plain_merge(
    checkpoints: Checkpoints, tmp_path: Path, family: str, style: str
) -> None:
    model = load_checkpoint(checkpoints(family))
    layers = named(model, style, family)
    state = lora_for(layers)
    lora = on_disk(tmp_path / "a.safetensors", state)
    before = weights(model)
    original = {name: module.get_parameter("weight").clone() for name, module in layers.items()}
    wanted = LoadedLora(lora.network_on_disk, te_multiplier=-0.5, unet_multiplier=0.75)
    assert apply_loras(model, [wanted]) == []
    assert loaded_loras(model) == (wanted,)
    for name, module in layers.items():
        expected = plain_merge(original[name], state, name, 0.75 if "unet" in name else -0.5)
        assert torch.allclose(module.get_parameter("weight").double(), expected, rtol=1e-6, atol=1e-6), name
        assert not torch.equal(module.get_parameter("weight"), original[name]), name
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) == len(layers), "no other weight is touched"
    apply_loras(model, [])
    assert same(weights(model), before)


def test_a_fully_connected_layer_may_come_as_a_convolution_and_the_other_way_round(
    model: StableDiffusionModel, tmp_path: Path
) -> None:
    unet = model.model.diffusion_model
    convolution = unet.get_submodule("down_blocks.0.attentions.0.proj_in").get_parameter("weight")
    linear = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q").get_parameter("weight")
    block = "lora_unet_down_blocks_0_attentions_0"
    names = f"{block}_proj_in", f"{block}_transformer_blocks_0_attn1_to_q"
    state = {**layer(names[0], convolution.shape[:2], 1), **layer(names[1], (*linear.shape, 1, 1), 2)}
    originals = convolution.clone(), linear.clone()
    assert apply_loras(model, [on_disk(tmp_path / "a.safetensors", state)]) == []
    for weight, original, name in zip((convolution, linear), originals, names):
        flat = plain_merge(original.flatten(1), {k: v.flatten(1) if v.ndim else v for k, v in state.items()}, name, 1.0)
        assert torch.allclose(weight.double().flatten(1), flat, atol=1e-6)


def test_several_loras_add_up_and_ranks_can_be_cut(model: StableDiffusionModel, tmp_path: Path) -> None:
    layers = named(model, "ldm", "sd1")
    one, other = lora_for(layers, 0, mid=False), lora_for(layers, 100, mid=False)
    original = {name: module.get_parameter("weight").clone() for name, module in layers.items()}
    first, second = (on_disk(tmp_path / f"{n}.safetensors", s).network_on_disk for n, s in (("a", one), ("b", other)))
    apply_loras(model, [LoadedLora(first, 0.5, 0.5), LoadedLora(second, 2.0, 2.0, dyn_dim=1), LoadedLora(first)])
    cut = dict(other)
    for name, module in layers.items():
        rank = len(other[f"{name}.lora_down.weight"])
        cut[f"{name}.lora_up.weight"] = other[f"{name}.lora_up.weight"][:, :1]
        cut[f"{name}.lora_down.weight"] = other[f"{name}.lora_down.weight"][:1]
        cut[f"{name}.alpha"] = other.get(f"{name}.alpha", torch.tensor(float(rank))) / rank  # as of the full rank
        expected = plain_merge(plain_merge(original[name], one, name, 1.5), cut, name, 2.0)
        assert torch.allclose(module.get_parameter("weight").double(), expected, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_taking_off_leaves_no_trace(model: StableDiffusionModel, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to(dtype)
    before = weights(model)
    layers = named(model, "ldm", "sd1")
    first = on_disk(tmp_path / "a.safetensors", {k: v.half() for k, v in lora_for(layers).items()})
    second = on_disk(tmp_path / "b.safetensors", lora_for(layers, 50))
    apply_loras(model, [second])
    alone = weights(model)
    for loras in ([first], [first, second], [second]):
        apply_loras(model, loras)
        assert not same(weights(model), before)
    assert same(weights(model), alone), "what was there before has no part"
    apply_loras(model, [])
    assert same(weights(model), before)
    assert loaded_loras(model) == ()


def test_an_exception_in_the_middle_leaves_the_bare_model(
    model: StableDiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(model)
    lora = on_disk(tmp_path / "a.safetensors", lora_for(named(model, "ldm", "sd1")))
    real, calls = LoraLayer.change, iter(range(100))

    def fails(*args: object) -> Any:
        if next(calls) == 7:
            raise torch.OutOfMemoryError("out of memory")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(LoraLayer, "change", fails)
    with pytest.raises(torch.OutOfMemoryError):
        apply_loras(model, [lora])
    assert same(weights(model), before)
    assert loaded_loras(model) == ()


def test_a_block_gives_back_what_was_there(model: StableDiffusionModel, tmp_path: Path) -> None:
    layers = named(model, "ldm", "sd1")
    first, second = (on_disk(tmp_path / f"{i}.safetensors", lora_for(layers, i)) for i in range(2))
    apply_loras(model, [first])
    before = weights(model)

    def work() -> None:
        with loras_restored(model):
            apply_loras(model, [second])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()
    assert same(weights(model), before)
    assert loaded_loras(model) == (first,)


def test_an_inpainting_model_keeps_its_further_inputs(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_checkpoint(checkpoints("sd1", in_channels=9))
    weight = model.model.diffusion_model.conv_in.weight
    original = weight.clone()
    state = layer("lora_unet_conv_in", (32, 4, 3, 3), 1)
    assert apply_loras(model, [on_disk(tmp_path / "a.safetensors", state)]) == []
    assert torch.equal(weight[:, 4:], original[:, 4:])
    expected = plain_merge(original[:, :4], state, "lora_unet_conv_in", 1.0)
    assert torch.allclose(weight[:, :4].double(), expected, atol=1e-6)


ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"


@pytest.mark.parametrize(
    ("state", "family"),
    [
        ({**layer(ATTENTION + "attn1_to_q", (32, 32), 1), **layer(ATTENTION + "attn2_to_k", (32, 768), 2)}, "SD1"),
        ({**layer(ATTENTION + "attn1_to_q", (32, 32), 1), **layer(ATTENTION + "attn2_to_v", (32, 2048), 2)}, "SDXL"),
        (
            {
                **layer(ATTENTION + "attn1_to_q", (32, 32), 1),
                **layer(ATTENTION.replace("_0_attn", "_1_attn") + "1_attn1_to_q", (32, 32), 2),
                **layer(ATTENTION + "attn1_to_k", (64, 64), 2),
            },
            "another kind of model",
        ),
        ({**layer("lora_unet_double_blocks_0_img_attn_qkv", (4, 4), 1)}, "Flux"),
        ({**layer("transformer.transformer_blocks.0.attn.to_q", (4, 4), 1)}, "a diffusion transformer"),
    ],
    ids=["SD1", "SDXL", "mostly", "Flux", "transformer"],
)
def test_one_of_another_family_is_refused_as_a_whole(
    model: StableDiffusionModel, tmp_path: Path, state: State, family: str
) -> None:
    before = weights(model)
    problems = apply_loras(model, [on_disk(tmp_path / "a.safetensors", state)])
    assert len(problems) == 1
    assert f"LoRA a was left out: it was made for {family}" in problems[0]
    assert loaded_loras(model) == ()
    assert same(weights(model), before)


def test_every_kind_is_taken_off_to_the_last_bit(model: StableDiffusionModel, tmp_path: Path) -> None:
    """Biases that were not there before, norms and layers whose change depends on the weight included."""
    model.half()
    before, keys = weights(model), list(model.state_dict())
    block = ATTENTION.removesuffix("_")
    unet = model.model.diffusion_model.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0")
    state = {
        f"{block}_attn1_to_q.diff": torch.full((32, 32), 0.1),
        f"{block}_attn1_to_q.diff_b": torch.full((32,), 0.25),
        f"{block}_norm1.w_norm": torch.full((32,), 0.5),
        f"{block}_norm1.b_norm": torch.full((32,), 0.5),
        f"{block}_attn1_to_k.weight": torch.full((32,), 0.5),
        f"{block}_attn1_to_k.on_input": torch.tensor(1),
        **layer(f"{block}_attn1_to_v", (32, 32), 1),
        f"{block}_attn1_to_v.dora_scale": torch.ones(32, 1),
        "lora_te_text_model_final_layer_norm.w_norm": torch.full((32,), 0.5),
    }
    file = on_disk(tmp_path / "a.safetensors", state).network_on_disk
    originals = {name: unet.get_submodule(name).weight.float() for name in ("attn1.to_k", "attn1.to_q", "attn1.to_v")}
    for strength in (1.0, 0.5, -1.0):
        assert apply_loras(model, [LoadedLora(file, strength, strength)]) == []
        assert unet.attn1.to_q.bias.tolist() == [0.25 * strength] * 32
        for name, change in (("attn1.to_k", originals["attn1.to_k"] * 0.5), ("attn1.to_q", 0.1)):
            expected = originals[name] + strength * change
            assert torch.allclose(unet.get_submodule(name).weight.float(), expected, atol=1e-3)
        assert torch.equal(unet.norm1.weight, (before[key_of(model, unet.norm1.weight)].float() + strength / 2).half())
    apply_loras(model, [LoadedLora(file, 1.0, 1.0)])
    assert torch.allclose(unet.attn1.to_v.weight.float().norm(dim=1), torch.ones(32), atol=1e-2)
    for last in ([LoadedLora(file, 0.0, 0.0)], []):
        apply_loras(model, last)
        assert same(weights(model), before)
        assert list(model.state_dict()) == keys


def key_of(model: StableDiffusionModel, parameter: torch.Tensor) -> str:
    return next(name for name, value in model.named_parameters() if value is parameter)


def test_what_is_left_out_is_named_and_the_rest_applied(model: StableDiffusionModel, tmp_path: Path) -> None:
    good = {f"{ATTENTION}attn1_to_{name}": (32, 32) for name in "qkv"}
    state = {key: value for name, shape in good.items() for key, value in layer(name, shape, 1).items()}
    state[f"{ATTENTION}attn1_to_v.lora_up.weight"] = torch.full((32, 2), float("nan"))
    state[f"{ATTENTION}attn1_to_q.bias_size"] = torch.ones(2)
    state[f"{ATTENTION}attn1_to_k.alpha"] = torch.tensor(0.0)
    lora = on_disk(tmp_path / "a.safetensors", state)
    assert apply_loras(model, [lora]) == [
        f"LoRA a: 1 of its 3 layers was left out: NaN or infinite values ('{ATTENTION}attn1_to_v').",
        "LoRA a: parts of an unknown kind were left out: bias_size.",
        "LoRA a: alpha is 0 in 1 of its 3 layers, so they change nothing.",
    ]
    assert loaded_loras(model) == (lora,)


def encoded(model: StableDiffusionModel, texts: list[str]) -> torch.Tensor:
    found = model.get_learned_conditioning(texts)
    assert isinstance(found, torch.Tensor)
    return found


def test_bundled_embeddings_are_words_of_the_prompt(model: StableDiffusionModel, tmp_path: Path) -> None:
    """A word's vectors stand at its places, and do not count where another LoRA or none is used."""
    encoder = model.cond_stage_model
    table = encoder.body.get_submodule("embeddings.token_embedding").get_parameter("weight")
    ids = encoder.tokenize(["red circle"])[0]
    state = {"bundle_emb.zorkel.string_to_param.*": table[ids].clone(), **layer("lora_unet_conv_in", (32, 4, 3, 3), 1)}
    plain = encoded(model, ["a zorkel, red"])
    lora = on_disk(tmp_path / "a.safetensors", state)
    assert apply_loras(model, [lora]) == []
    meant = encoded(model, ["a red circle, red", "a (red circle:1.2), red"])
    assert len(encoder.tokenize(["a zorkel"])[0]) == 3, "methods find the places of later words"
    assert torch.allclose(encoded(model, ["a ZORKEL, red", "a (zorkel:1.2), red"]), meant, atol=1e-5)
    long = "x, " * 37 + "zorkel"
    assert len(encoder.process_texts([long])[0][0]) == 2, "an embedding stays in one chunk"
    apply_loras(model, [])
    assert torch.equal(encoded(model, ["a zorkel, red"]), plain)
    for shape in ((2, 768), (76, table.shape[1]), (0, table.shape[1])):
        wrong = {**state, "bundle_emb.zor\nkel.string_to_param.*": torch.ones(shape)}
        del wrong["bundle_emb.zorkel.string_to_param.*"]
        problems = apply_loras(model, [on_disk(tmp_path / f"{shape[0]}.safetensors", wrong)])
        told = f"LoRA {shape[0]}: its embedding 'zor?kel' does not fit this checkpoint and was left out."
        assert problems == [told]


def test_a_file_is_no_pickle_because_of_the_length_of_its_header(tmp_path: Path) -> None:
    """The first bytes of a .safetensors file are that length: 0x0180, for one, begins as pickles do."""
    for extra in range(600):
        path = write(tmp_path / "a.safetensors", {"lora_te_x.alpha": torch.tensor(1.0)}, {"note": "x" * extra})
        if path.read_bytes()[:2] == b"\x80\x01":
            break
    assert path.read_bytes()[:2] == b"\x80\x01"
    assert read_state(path).keys() == load_file(str(path)).keys()
