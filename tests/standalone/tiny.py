"""Tiny random models of every family, and both ways to write them: a diffusers folder, and one file in LDM's key names.

The renaming to LDM's names is written here on its own, from the layout of the published checkpoints, so that loading is
not tested against itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from standalone.engine.weights import ldm_unet, ldm_vae

State = dict[str, torch.Tensor]
TEXT, POOLED, SIZES = 32, 32, 6 * 256


@dataclass
class Tiny:
    """A model in parts. `heads` are those that its yaml names."""

    family: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    texts: list[Any]
    parameterization: str = "eps"
    scale_factor: float = 0.18215
    extra: State = field(default_factory=dict)


def _text(gelu: bool, *, layers: int = 2, projection: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=TEXT,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act="gelu" if gelu else "quick_gelu",
        projection_dim=POOLED,
        eos_token_id=49407,
        bos_token_id=49406,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # transformers' own start is so small that prompts hardly differ
        elif name.endswith("final_layer_norm.bias"):
            torch.nn.init.constant_(parameter, 0.3)  # as in trained encoders, the output has a mean
    return model.eval()


def build(
    family: str = "sd1", *, in_channels: int = 4, parameterization: str | None = None, seed: int = 0, levels: int = 2
) -> Tiny:
    """A model of `family` (sd1, sd2, sdxl) with random weights; about two million of them, most in the vocabulary.

    levels: resolutions of the UNet, 1 or 2; a single one has half as many layers, as yet for SD1 alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sdxl = family == "sdxl"
        config: dict[str, Any] = {
            "sample_size": 8,
            "in_channels": in_channels,
            "out_channels": 4,
            "block_out_channels": (32, 64)[:levels],
            "layers_per_block": 1,
            "cross_attention_dim": 2 * TEXT if sdxl else TEXT,
            "norm_num_groups": 32,
            "down_block_types": ("DownBlock2D" if sdxl else "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")[:levels],
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D" if sdxl else "CrossAttnUpBlock2D")[:levels],
            "attention_head_dim": 4,
            "use_linear_projection": family != "sd1",
        }
        if sdxl:
            config.update(
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=POOLED + SIZES,
            )
        unet = UNet2DConditionModel(**config).eval()
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            scaling_factor=0.13025 if sdxl else 0.18215,
        ).eval()
        texts = [_text(False), _text(True, projection=True)] if sdxl else [_text(family == "sd2")]
    return Tiny(
        family, unet, vae, texts, parameterization or ("v" if family == "sd2" else "eps"), vae.config.scaling_factor
    )


# -- a diffusers folder


def write_folder(model: Tiny, path: Path) -> Path:
    """Writes `model` as `save_pretrained` does."""
    model.unet.save_pretrained(path / "unet")
    model.vae.save_pretrained(path / "vae")
    for name, text in zip(("text_encoder", "text_encoder_2"), model.texts):
        text.save_pretrained(path / name, safe_serialization=True)  # older versions of transformers pickle
    (path / "scheduler").mkdir()
    scheduler = {
        "prediction_type": "v_prediction" if model.parameterization == "v" else "epsilon",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
    }
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    return path


# -- one file


def _bare(text: Any) -> State:
    """A text encoder's weights without what only some versions of transformers have: an infix, and a buffer."""
    bare = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    return {key: value for key, value in bare.items() if not key.endswith("position_ids")}


def open_clip_text(text: Any, prefix: str, *, extra_layer: bool) -> State:
    """A text encoder's weights in OpenCLIP's names; with `extra_layer` one more layer, that SD2 does not use."""
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    top = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    state, out = _bare(text), {}
    layers = text.config.num_hidden_layers
    for key, value in state.items():
        if key in top:
            out[top[key]] = value
        elif key == "text_projection.weight":
            out["text_projection"] = value.T.contiguous()
    for layer in range(layers + extra_layer):
        source, target = f"encoder.layers.{min(layer, layers - 1)}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            thirds = [state[f"{source}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            out[f"{target}attn.in_proj_{kind}"] = torch.cat(thirds)
            for old, new in names.items():
                out[f"{target}{new}.{kind}"] = state[f"{source}{old}.{kind}"] * (0.5 if layer == layers else 1)
    if extra_layer:
        out["text_projection"] = torch.eye(TEXT)
    return {prefix + key: value for key, value in out.items()}


def ldm_state(model: Tiny, *, old_text_names: bool = False) -> State:
    """All weights in LDM's (for SDXL, SGM's) names."""
    state = {**ldm_unet(model.unet), **ldm_vae(model.vae)}
    if model.family == "sd1":
        infix = "" if old_text_names else "text_model."
        state.update(
            {f"cond_stage_model.transformer.{infix}{key}": value for key, value in _bare(model.texts[0]).items()}
        )
    elif model.family == "sd2":
        state.update(open_clip_text(model.texts[0], "cond_stage_model.model.", extra_layer=True))
    else:
        state.update(
            {f"conditioner.embedders.0.transformer.text_model.{k}": v for k, v in _bare(model.texts[0]).items()}
        )
        state.update(open_clip_text(model.texts[1], "conditioner.embedders.1.model.", extra_layer=False))
    return {**state, **model.extra}


def ldm_yaml(model: Tiny) -> dict[str, Any]:
    """The configuration beside the file, as LDM writes it; only what weights do not show."""
    params: dict[str, Any] = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "scale_factor": model.scale_factor,
        "parameterization": model.parameterization,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {
                "model_channels": 32,
                "channel_mult": [1, 2][: len(model.unet.config.block_out_channels)],
                "num_res_blocks": 1,
                "num_heads": 4,
                "attention_resolutions": [1, 2][: len(model.unet.config.block_out_channels)],
                "in_channels": model.unet.config.in_channels,
            },
        },
        "cond_stage_config": {"params": {"num_attention_heads": 2}},
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def write_file(
    model: Tiny, path: Path, *, with_yaml: bool = True, half: bool = False, old_text_names: bool = False
) -> Path:
    """Writes `model` as one .safetensors file, with its yaml beside it."""
    state = ldm_state(model, old_text_names=old_text_names)
    save_file({key: (value.half() if half else value).clone().contiguous() for key, value in state.items()}, str(path))
    if with_yaml:
        path.with_suffix(".yaml").write_text(yaml.safe_dump(ldm_yaml(model)), encoding="utf-8")
    return path
