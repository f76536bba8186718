"""Weights of checkpoint files: read without pickles, named as the libraries or LDM name them, put into modules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from lib_methods.checkpoints.layout import check_weights
from lib_methods.checkpoints.ldm_names import (
    OPEN_CLIP_PARTS,
    OPEN_CLIP_TOP,
    SD1_TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    unet_names,
    vae_name,
)
from lib_methods.errors import CheckpointError
from lib_methods.safetensors import PICKLED, check_name, read_header, read_tensors


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the file, or of several one after another, in hexadecimal. Reads them in pieces of 1 MiB."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def check_not_pickled(path: Path) -> None:
    """Raises CheckpointError when the name of `path` is that of a pickle."""
    if path.suffix.lower() in PICKLED:
        check_name(path)


def read_state(path: Path, name: str = "", only: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, on the CPU. name: what sentences call the file. only: which of the tensors.

    Raises CheckpointError in plain words.
    """
    read_header(path, name)
    state, _ = read_tensors(path, name)
    return state if only is None else {key: state[key] for key in only}


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Loads `state` into `module`: every weight must be there, fit and be finite; others are ignored."""
    # transformers before 4.31 counts the text's positions in a buffer, which files may lack: it is filled already
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}
    check_weights({k: tuple(v.shape) for k, v in wanted.items()}, {k: v.shape for k, v in state.items()}, what)
    module.load_state_dict({key: state[key] for key in wanted}, strict=False)
    for key, value in wanted.items():  # these share the module's memory
        if value.is_floating_point() and not bool(value.sum(dtype=torch.float32).isfinite()):
            raise CheckpointError(
                f"The {what} of this checkpoint has weights that are NaN or infinite ('{key}'), so its images would be "
                "black or noise. The file was damaged when it was made: get another version of the model."
            )


def match_text_names(transformer: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames text weights, given without the infix `text_model.`, to what this version of transformers calls them."""
    infix = "text_model." if hasattr(transformer, "text_model") else ""
    return {key if key.startswith("text_projection") else infix + key: value for key, value in weights.items()}


def open_clip_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's text weights in transformers' names, without the infix `text_model.`.

    diffusers has such a function, too, but with the sizes and the number of layers of the published models built in.
    """
    out: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        if name in OPEN_CLIP_TOP:
            out[OPEN_CLIP_TOP[name]] = value
        elif name == "text_projection":
            out["text_projection.weight"] = value.T.contiguous()
        elif name.startswith("transformer.resblocks."):
            number, part = name[len("transformer.resblocks.") :].split(".", 1)
            layer = f"encoder.layers.{number}."
            if part.startswith("attn.in_proj_"):
                for letter, third in zip("qkv", value.chunk(3, dim=0)):
                    out[f"{layer}self_attn.{letter}_proj.{part[len('attn.in_proj_') :]}"] = third.contiguous()
            else:
                stem, kind = part.rsplit(".", 1)
                out[f"{layer}{OPEN_CLIP_PARTS.get(stem, stem)}.{kind}"] = value
    return out


def ldm_unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """LDM's name of every weight of the UNet, without `model.diffusion_model.`, by diffusers' name."""
    return unet_names(unet.state_dict(), unet.config)


def ldm_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights in LDM's names."""
    state = unet.state_dict()
    return {UNET_PREFIX + name: state[key] for key, name in ldm_unet_names(unet).items()}


def ldm_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The VAE's weights in LDM's names; its attention's as convolutions."""
    levels = len(vae.config.block_out_channels)
    return {
        VAE_PREFIX + vae_name(key, levels): (
            value[:, :, None, None] if ".attentions.0.to_" in key and value.ndim == 2 else value
        ).contiguous()
        for key, value in vae.state_dict().items()
    }


def ldm_networks(unet: Mapping[str, Any], vae: Mapping[str, Any], image_size: int, resolution: int) -> dict[str, Any]:
    """The UNet's and the VAE's parts of LDM's yaml in SD1's form, from diffusers' configurations.

    image_size, resolution: numbers that LDM writes down and no class uses.
    """
    widths, vae_widths = unet["block_out_channels"], vae["block_out_channels"]
    heads = unet["attention_head_dim"]  # diffusers' name for the number of heads
    unet_params = {
        "image_size": image_size,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": [2**n for n, kind in enumerate(unet["down_block_types"]) if kind.startswith("Cross")],
        "num_res_blocks": unet["layers_per_block"],
        "channel_mult": [width // widths[0] for width in widths],
        "num_heads": heads if isinstance(heads, int) else heads[0],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }
    vae_params = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": vae_widths[0],
        "ch_mult": [width // vae_widths[0] for width in vae_widths],
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet_params},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": vae["latent_channels"],
                "ddconfig": vae_params,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
    }


def ldm_clip_text(text: Any) -> dict[str, Tensor]:
    """A CLIP text encoder's weights in the names of SD1's single files, nested whatever version of transformers made
    it."""
    bare = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    return {f"{SD1_TEXT_PREFIX}text_model.{key}": value for key, value in bare.items()}
