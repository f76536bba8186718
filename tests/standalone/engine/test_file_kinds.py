"""Files as found in the wild: loader, trainer and plan give the same verdict; what is written can be read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_methods.dreambooth.model.base import read_base
from lib_methods.errors import CheckpointError, UserError
from lib_methods.safetensors import NotFinite, read_header, rounded, write_tensors
from standalone.dreambooth import load_training_model
from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.model import StableDiffusionModel
from standalone.instruct.train import widened, write_checkpoint
from tests.standalone import tiny

State = dict[str, torch.Tensor]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OPEN_CLIP = "conditioner.embedders.1.model."
ONE = torch.zeros(1)
OUT = UNET + "out.2.weight"


@pytest.fixture(scope="module")
def states(models: dict[str, tiny.Tiny]) -> dict[str, State]:
    """A file's tensors of every family, in half precision. Yaml-less, so heads are the published ones."""
    return {
        family: {key: value.half().contiguous() for key, value in tiny.ldm_state(model).items()}
        for family, model in models.items()
    }


def only(*prefixes: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key.startswith(prefixes)}


def without(*prefixes: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(prefixes)}


def added(**tensors: torch.Tensor) -> Callable[[State], State]:
    return lambda state: {**state, **{key.replace("__", "."): value for key, value in tensors.items()}}


def alone(*names: str) -> Callable[[State], State]:
    return lambda state: {name: ONE.clone() for name in names}


def fp8(state: State) -> State:
    return {key: value.to(torch.float8_e4m3fn) if key == OUT else value for key, value in state.items()}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {new + key[len(old) :]: value for key, value in state.items() if key.startswith(old)}


KINDS: dict[str, tuple[str, Callable[[State], State], str]] = {
    "scaled fp8": ("sd1", lambda s: {**fp8(s), UNET + "out.2.scale_weight": ONE, "scaled_fp8": ONE}, "scaled fp8"),
    "scaled fp8, new names": ("sd1", lambda s: {**fp8(s), UNET + "out.2.weight_scale": ONE}, "scaled fp8"),
    "comfy's marks": ("sdxl", lambda s: {**s, UNET + "x.comfy_quant": ONE, UNET + "x.weight_scale_2": ONE}, "fp4"),
    "marker alone": ("sd1", added(**{"model__diffusion_model__scaled_fp8": ONE}), "scaled fp8"),
    "nf4": ("sd1", lambda s: {**s, OUT + ".absmax": ONE, OUT + ".quant_state.bitsandbytes__nf4": ONE}, "nf4"),
    "int8 of bitsandbytes": ("sd1", lambda s: {**s, UNET + "out.2.SCB": ONE}, "int8"),
    "int8": ("sd1", lambda s: {**s, OUT: s[OUT].to(torch.int8)}, "as I8 numbers"),
    "packed 4 bits": ("sd1", lambda s: {**s, OUT: s[OUT].to(torch.uint8)}, "as U8 numbers"),
    "GPTQ": ("sd1", lambda s: {**s, UNET + "out.2.qweight": ONE}, "quantised"),
    "CosXL": ("sdxl", lambda s: {**s, "edm_vpred.sigma_max": ONE, "v_pred": ONE}, "CosXL's EDM"),
    "CosXL, one mark": ("sdxl", lambda s: {**s, "edm_vpred.sigma_min": ONE}, "EDM"),
    "Playground v2.5": ("sdxl", lambda s: {**s, "edm_mean": ONE, "edm_std": ONE}, "Playground v2.5"),
    "Flux": ("sd1", alone("double_blocks.0.img_attn.qkv.weight"), "Flux"),
    "Flux with all parts": ("sd1", added(model__diffusion_model__double_blocks__0__x=ONE), "Flux"),
    "SD3": ("sd1", alone(UNET + "joint_blocks.0.x"), "Stable Diffusion 3"),
    "Stable Cascade": ("sd1", alone("clip_txt_mapper.weight", "down_blocks.0.0.channelwise.0.x"), "Stable Cascade"),
    "PixArt": ("sd1", alone("t_block.1.weight", "x_embedder.proj.weight"), "PixArt"),
    "Hunyuan-DiT": ("sd1", alone("mlp_t5.0.weight", "x_embedder.proj.weight"), "Hunyuan-DiT"),
    "HunyuanVideo": ("sd1", alone("txt_in.individual_token_refiner.x", "double_blocks.0.x"), "HunyuanVideo"),
    "Flux.2": ("sd1", alone(UNET + "double_stream_modulation_img.lin.weight", "double_blocks.0.x"), "Flux.2"),
    "Anima": ("sd1", alone("net.llm_adapter.blocks.0.cross_attn.q_proj.weight"), "Anima"),
    "Krea 2": ("sd1", alone("txtfusion.projector.weight"), "Krea 2"),
    "ERNIE-Image": ("sd1", alone(UNET + "layers.0.mlp.linear_fc2.weight"), "ERNIE-Image"),
    "Lumina": ("sd1", alone(UNET + "cap_embedder.0.weight"), "Lumina"),
    "AuraFlow": ("sd1", alone(UNET + "double_layers.0.attn.w1q.weight"), "AuraFlow"),
    "Chroma": ("sd1", alone("distilled_guidance_layer.x", "double_blocks.0.x"), "Chroma"),
    "Qwen-Image": ("sd1", alone("transformer_blocks.0.img_mod.1.weight"), "Qwen-Image"),
    "Wan": ("sd1", alone(UNET + "head.modulation"), "Wan"),
    "SVD": ("sd1", alone(UNET + "input_blocks.1.1.time_stack.0.x"), "Stable Video"),
    "refiner": ("sdxl", lambda s: only(UNET, VAE)(s) | renamed(OPEN_CLIP, "conditioner.embedders.0.model.")(s),
                "refiner"),
    "kohya's LoRA": ("sd1", alone("lora_unet_x.lora_down.weight", "lora_unet_x.alpha"), "LoRA"),
    "a LoRA of peft": ("sd1", alone("diffusion_model.input_blocks.1.1.proj_in.lora_A.weight"), "LoRA"),
    "a LoHa": ("sd1", alone("lora_unet_x.hada_w1_a"), "LoRA"),
    "a ControlNet": ("sd1", alone("control_model.zero_convs.0.0.weight"), "ControlNet"),
    "a ControlNet of diffusers": ("sd1", alone("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.x"),
                                  "ControlNet"),
    "an IP-Adapter": ("sd1", alone("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "IP-Adapter"),
    "a motion module": ("sd1", alone("down_blocks.0.motion_modules.0.norm.weight"), "AnimateDiff"),
    "an embedding": ("sd1", alone("emb_params"), "embedding"),
    "an SDXL embedding": ("sdxl", alone("clip_g", "clip_l"), "embedding"),
    "an upscaler": ("sd1", alone("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "upscaler"),
    "a VAE": ("sd1", renamed(VAE, ""), "only a VAE"),
    "a VAE with its prefix": ("sd1", only(VAE), "only a VAE"),
    "a text encoder": ("sd1", renamed(TEXT + "transformer.", ""), "only a text encoder"),
    "a T5": ("sd1", alone("encoder.block.0.layer.0.SelfAttention.q.weight"), "only a text encoder"),
    "a bare UNet": ("sd1", renamed(UNET, ""), "only a UNet"),
    "a UNet as comfy has it": ("sd1", renamed("model.", ""), "only a UNet"),
    "a UNet of diffusers": ("sd1", alone("down_blocks.0.resnets.0.conv1.weight"), "only a UNet"),
    "moving averages alone": ("sd1", alone("model_ema.diffusion_modelout2weight"), "EMA"),
    "something else": ("sd1", alone("my.tensor"), "no Stable Diffusion UNet"),
    "no VAE": ("sd1", without(VAE), "no VAE"),
    "no text encoder": ("sd1", without(TEXT), "no text encoder"),
    "SDXL without conditioner": ("sdxl", without("conditioner."), "no text encoders"),
    "SDXL without CLIP-L": ("sdxl", without("conditioner.embedders.0."), "first text encoder"),
    "SDXL without projection": ("sdxl", without("conditioner.embedders.1.model.text_projection"), "text_projection"),
    "SSD-1B": ("sdxl", without(UNET + "middle_block.1."), "SSD-1B"),
    "unCLIP": ("sd2", lambda s: {**s, UNET + "label_emb.0.0.weight": ONE}, "unCLIP"),
    "a missing weight of the UNet": ("sd1", without(UNET + "time_embed.0.weight"), "1 weights are missing"),
    "a missing layer": ("sdxl", without(UNET + "output_blocks.0.1.transformer_blocks.1"), "weights are missing"),
    "a missing weight of the VAE": ("sd1", without(VAE + "quant_conv.bias"), "1 weights are missing"),
    "a missing weight of the text encoder": ("sd1", without(TEXT + "transformer.text_model.final"), "2 weights"),
    "a wrong shape": ("sd1", lambda s: {**s, OUT: s[OUT][:, :1]}, "1 have another size"),
    "a scalar": ("sd1", lambda s: {**s, UNET + "input_blocks.0.0.weight": torch.tensor(1.0)}, "cannot be built"),
    "another text encoder": ("sd1", lambda s: {**s, **only(UNET)(STATES["sdxl"])}, "no text|no first|together"),
    "a made-up block": ("sd1", lambda s: {**s, UNET + "input_blocks.99999999999.0.x": ONE}, "more blocks"),
}  # fmt: skip
STATES: dict[str, State] = {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path, states: dict[str, State], kind: str) -> None:
    STATES.update(states)
    family, change, reason = KINDS[kind]
    path = tmp_path / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in change(dict(states[family])).items()}, path)
    sentence = refusal(path)
    assert any(word in sentence for word in reason.split("|")), sentence


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_plain_precisions_are_read_as_they_are(tmp_path: Path, states: dict[str, State], dtype: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    stored = {key: value.to(dtype) for key, value in states["sd1"].items()}
    save_file(stored, path)
    weight = accepted(path).model.diffusion_model.get_parameter("conv_out.weight")
    assert torch.equal(weight, stored[OUT].float())


def test_early_names_and_attention_as_linear_layers_are_read(tmp_path: Path, states: dict[str, State]) -> None:
    path = tmp_path / "model.safetensors"
    state = dict(states["sd1"])
    for key in [key for key in state if ".mid.attn_1." in key and state[key].ndim == 4]:
        state[key] = state[key][:, :, 0, 0].contiguous()
    save_file({key.replace("transformer.text_model.", "transformer."): value for key, value in state.items()}, path)
    accepted(path)


# -- files that are no .safetensors file at all


def _raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a web page": (b"<!DOCTYPE html><html><head><title>Log in</title>", "a web page"),
    "a web page after blanks": (b"\r\n\r\n <HTML lang=en><body>" + b" " * 600, "a web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 12345\n", "Git LFS pointer"),
    "a site's answer": (b'{"error": "Unauthorized", "message": "Access is restricted"}', "a text file"),
    "a site's sentence": (b"Access to model x is restricted. You must be authenticated to access it.", "a text file"),
    "a zip or .pt": (b"PK\x03\x04" + b"\0" * 90, "pickled"),
    "a pickle": (b"\x80\x02}q\x00(X more than nine bytes", "pickled"),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 90, "GGUF"),
    "an image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "an image"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 90, "gzip"),
    "zeros": (b"\0" * 5000, "damaged"),
    "a header that is cut": (_raw({"x": _ENTRY})[:20], "incomplete"),
    "data that is cut": (
        _raw({"x": {**_ENTRY, "shape": [500], "data_offsets": [0, 2000]}}, b"1234"),
        "78 bytes of 2.07 kB",
    ),
    "too much data": (_raw({"x": _ENTRY}, b"123456789"), "damaged"),
    "a hole": (_raw({"x": {**_ENTRY, "data_offsets": [8, 16]}}, b"1" * 16), "damaged"),
    "tensors that overlap": (_raw({"x": _ENTRY, "y": _ENTRY}, b"1" * 16), "damaged"),
    "sizes that do not fit": (_raw({"x": {**_ENTRY, "shape": [3]}}, b"1" * 8), "damaged"),
    "an unknown type": (_raw({"x": {**_ENTRY, "dtype": "Q4"}}, b"1" * 8), "damaged"),
    "nesting": (_raw(b'{"x":' * 50_000 + b"1" + b"}" * 50_000), "damaged"),
    "no JSON": (_raw(b"{nonsense"), "damaged"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_the_cause_is_said_when_a_file_is_no_model(tmp_path: Path, what: str) -> None:
    content, reason = CONTENTS[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert reason in refusal(path)


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors.crdownload", "model.ckpt", "model.png", "model"])
def test_the_name_of_a_file_counts_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some text that is none of these")
    sentence = refusal(tmp_path / name)
    assert ("GGUF" in sentence) + ("unfinished" in sentence) + ("pickled" in sentence) + ("not a .saf" in sentence) == 1


def test_a_download_that_stopped_says_how_much_is_there(tmp_path: Path, states: dict[str, State]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(states["sd1"], path)
    os.truncate(path, path.stat().st_size - 1_000_000)
    assert "MB of" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", [OUT, VAE + "decoder.conv_out.bias", TEXT + "transformer.text_model.final_layer_norm.bias"]
)
def test_a_base_that_is_not_finite_is_blamed_itself(
    tmp_path: Path, states: dict[str, State], name: str, value: float
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**states["sd1"], name: torch.full_like(states["sd1"][name], value)}, path)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="The base model cannot be used: .*NaN or infinite"):
        load_training_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"good": torch.ones(3, dtype=dtype)})
    before = path.read_bytes()
    spoilt = torch.ones(5, dtype=dtype)
    spoilt[3] = value
    with pytest.raises(NotFinite, match="'bad' has numbers that are not finite"):
        write_tensors(path, {"good": torch.ones(3), "bad": spoilt})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_numbers_too_large_for_a_precision_are_refused() -> None:
    assert torch.equal(rounded("x", torch.full((2,), 65504.0), torch.float16), torch.full((2,), 65504.0).half())
    with pytest.raises(NotFinite, match="'x' reaches 7e\\+04, which is too large for fp16"):
        rounded("x", torch.tensor([1.0, -70000.0]), torch.float16)
    assert rounded("x", torch.tensor([-70000.0]), torch.bfloat16).isfinite().all()


def test_what_is_written_is_read_back_by_safetensors(tmp_path: Path) -> None:
    tensors = {
        "whole": torch.arange(5),
        "half": torch.randn(3, 2).half(),
        "eight": torch.randn(7).to(torch.float8_e4m3fn),
        "empty": torch.empty(0),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(3, 4).T,
    }
    write_tensors(tmp_path / "x.safetensors", dict(tensors), {"title": "\u00fc"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k].float(), tensors[k].float()) for k in tensors)
    assert read_header(tmp_path / "x.safetensors").metadata == {"title": "\u00fc"}


def test_an_instruct_checkpoint_that_is_not_finite_leaves_no_file(tmp_path: Path, checkpoints: Any) -> None:
    model = load_checkpoint(checkpoints("sd1"))
    unet = widened(model.model.diffusion_model)
    with torch.no_grad():
        unet.get_parameter("conv_out.bias").fill_(1e6)
    with pytest.raises(CheckpointError, match="too large for fp16"):
        write_checkpoint(model, unet, None, tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out").exists()


def refusal(path: Path) -> str:
    """The one sentence that loader, trainer and plan all say to the file at `path`."""
    with pytest.raises(CheckpointError) as loader:
        load_checkpoint(path)
    with pytest.raises(UserError) as trainer:
        load_training_model(path)
    with pytest.raises(UserError) as plan:
        read_base(path)
    assert str(trainer.value) == str(plan.value) == f"The base model cannot be used: {loader.value}"
    assert str(path.parent) not in str(loader.value)
    return str(loader.value)


def accepted(path: Path) -> StableDiffusionModel:
    """The model, which loader, trainer and plan all take."""
    read_base(path)
    load_training_model(path)
    return load_checkpoint(path)
