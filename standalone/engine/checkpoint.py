"""Loads a checkpoint: a single .safetensors file in LDM's key names, or a diffusers folder. Offline, no pickles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_methods.checkpoints.folder import UNET_WEIGHTS, is_diffusers_folder, part_weights
from lib_methods.checkpoints.geometry import TextGeometry
from lib_methods.checkpoints.ldm_names import VAE_PREFIX, modern_vae_key
from lib_methods.checkpoints.reader import TEXT_PARTS, Checkpoint, read_checkpoint
from lib_methods.errors import CheckpointError

from .model import StableDiffusionModel
from .text import TextEncoder
from .weights import check_not_pickled, fill, match_text_names, open_clip_state, read_state, sha256_of

__all__ = ["checkpoint_sha256", "is_diffusers_folder", "load_checkpoint", "part_state", "read"]

Progress = Callable[[str], None]


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of the file, of a diffusers folder that of its UNet's. Raises CheckpointError."""
    return sha256_of(*(part_weights(path, "unet", UNET_WEIGHTS).files if path.is_dir() else [path]))


def read(path: Path) -> Checkpoint:
    """What the checkpoint's headers and configuration tell. Raises CheckpointError for what cannot be loaded."""
    if not path.exists():
        check_not_pickled(path)
        raise CheckpointError(f"There is no checkpoint named {path.name}.")
    return read_checkpoint(path)


def load_checkpoint(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> StableDiffusionModel:
    """Loads the checkpoint at `path`. Raises CheckpointError, whose text says what is wrong and what to do.

    `dtype` is the precision of UNet, VAE and text encoders; `progress` is called with a line of text now and then.
    """
    say = progress or (lambda text: None)
    say(f"Reading {path.name}")
    found = read(Path(path))
    say(f"Building the {found.family.upper()} model")
    try:
        unet, vae, encoders = _folder_parts(found) if found.is_folder else _file_parts(found)
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"The model in {path.name} cannot be built from its configuration.") from error
    schedule = found.schedule
    if schedule.prediction == "unknown":
        schedule = dataclasses.replace(schedule, prediction="v" if predicts_v(unet) else "eps")
    if dtype != torch.float32:  # diffusers warns about every cast, also one that does nothing
        for module in (unet, vae, *encoders):
            module.to(dtype)
    model = StableDiffusionModel(
        family=found.family,
        unet=unet,
        vae=vae,
        encoders=encoders,
        scale_factor=found.scale_factor,
        noise_schedule=schedule,
    )
    say(f"Moving {path.name} to {device}")
    return model.to(device)


# -- single files


def _file_parts(found: Checkpoint) -> tuple[UNet2DConditionModel, AutoencoderKL, list[TextEncoder]]:
    state = read_state(found.path)
    unet = UNet2DConditionModel(**found.unet)
    fill(unet, convert_ldm_unet_checkpoint(dict(state), {**found.unet, "class_embed_type": None}), "UNet")
    vae = AutoencoderKL(**found.vae)
    vae_state = {key: value for key, value in state.items() if key.startswith(VAE_PREFIX)}
    fill(vae, convert_ldm_vae_checkpoint(vae_state, dict(found.vae)), "VAE")
    return unet, vae, [_text_encoder(text, state, found.family) for text in found.texts]


def predicts_v(unet: UNet2DConditionModel) -> bool:
    """Whether an SD2 UNet was trained to predict v rather than eps.

    At the last timestep the input is nearly all noise: an eps model then returns nearly its input, a v model returns
    nearly minus the image, which for a constant input is far below it. The same test as the WebUI makes.
    """
    channels = unet.config.in_channels
    with torch.no_grad():
        x = torch.full((1, channels, 8, 8), 0.5)
        context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5)
        out = unet.float()(x, torch.tensor([999]), encoder_hidden_states=context, return_dict=False)[0]
        return bool((out - x[:, : out.shape[1]]).mean() < -1)


def _text_config(text: TextGeometry, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=text.vocab,
        hidden_size=text.hidden,
        intermediate_size=text.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=text.heads,
        max_position_embeddings=text.positions,
        hidden_act="gelu" if text.open_clip else "quick_gelu",
        projection_dim=text.projection or text.hidden,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


def _text_encoder(text: TextGeometry, state: Mapping[str, torch.Tensor], family: str) -> TextEncoder:
    """Builds one text encoder in the role that its family gives it, and fills it."""
    if not text.open_clip:
        transformer: nn.Module = CLIPTextModel(_text_config(text, text.layers))
        weights = {key[len(text.prefix) :]: value for key, value in state.items() if key.startswith(text.prefix)}
        role: dict[str, Any] = {"skippable": True} if family == "sd1" else {"layer": "penultimate"}
    elif family == "sd2":
        # conditioned on the last layer but one, then the final norm: without its last layer it is an ordinary encoder
        transformer = CLIPTextModel(_text_config(text, text.layers - 1))
        weights, role = open_clip_state(state, text.prefix), {"pad": 0}
    else:
        transformer = CLIPTextModelWithProjection(_text_config(text, text.layers))
        weights, role = open_clip_state(state, text.prefix), {"pad": 0, "layer": "penultimate", "pooled": True}
    fill(transformer, match_text_names(transformer, weights), "text encoder")
    return TextEncoder(transformer, **role)


# -- diffusers folders


def part_state(found: Checkpoint, part: str) -> dict[str, torch.Tensor]:
    """The weights of a part of the folder, from as many files as they are in, in the names that modules have now."""
    weights, state = found.parts[part], {}
    for file in weights.files:
        inside = [key for key, place in weights.places.items() if place == file]
        state.update(read_state(file, f"{part}/{file.name}", inside))
    return {modern_vae_key(key): value for key, value in state.items()} if part == "vae" else state


def _folder_parts(found: Checkpoint) -> tuple[UNet2DConditionModel, AutoencoderKL, list[TextEncoder]]:
    unet, vae = UNet2DConditionModel.from_config(_plain(found.unet)), AutoencoderKL.from_config(_plain(found.vae))
    assert isinstance(unet, UNet2DConditionModel) and isinstance(vae, AutoencoderKL)
    fill(unet, part_state(found, "unet"), "UNet")
    fill(vae, part_state(found, "vae"), "VAE")
    roles: dict[str, list[dict[str, Any]]] = {
        "sd1": [{"skippable": True}],
        "sd2": [{"pad": 0}],
        "sdxl": [{"layer": "penultimate"}, {"pad": 0, "layer": "penultimate", "pooled": True}],
    }
    encoders = []
    for name, config, role in zip(TEXT_PARTS, found.text_configs, roles[found.family]):
        kind = CLIPTextModelWithProjection if role.get("pooled") else CLIPTextModel
        text = kind(CLIPTextConfig(**{**_plain(config), "eos_token_id": 49407, "bos_token_id": 49406}))
        weights = {key.removeprefix("text_model."): value for key, value in part_state(found, name).items()}
        fill(text, match_text_names(text, weights), "text encoder")
        encoders.append(TextEncoder(text, **role))
    return unet, vae, encoders


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
