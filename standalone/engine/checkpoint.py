"""Loads a checkpoint: a single .safetensors file in LDM's key names, or a diffusers folder. Offline, no pickles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_methods.ldm_checkpoint import VAE_PREFIX

from .errors import CheckpointError
from .files import check_not_pickled, read_config, read_state, sha256_of
from .geometry import ModelGeometry, TextGeometry, read_geometry
from .model import StableDiffusionModel, alpha_schedule
from .text import TextEncoder
from .tokenizer import VOCABULARY_SIZE
from .weights import fill, match_text_names, modern_vae_key, open_clip_state

Progress = Callable[[str], None]
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"


def is_diffusers_folder(path: Path) -> bool:
    """Whether `path` is a folder as `save_pretrained` writes it."""
    return (path / "unet" / "config.json").is_file()


def weights_file(path: Path) -> Path:
    """The file whose hash stands for the checkpoint: itself, or the UNet of a diffusers folder."""
    return folder_weights(path / "unet", DIFFUSERS_WEIGHTS) if path.is_dir() else path


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of weights_file(path)."""
    return sha256_of(weights_file(path))


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
    path = Path(path)
    if not path.exists():
        check_not_pickled(path)
        raise CheckpointError(f"There is no checkpoint named {path.name}.")
    if path.is_dir():
        if not is_diffusers_folder(path):
            raise CheckpointError(f"The folder {path.name} is no diffusers checkpoint: it has no unet/config.json.")
        model = _load_folder(path, dtype, say)
    else:
        model = _load_single_file(path, dtype, say)
    say(f"Moving {path.name} to {device}")
    return model.to(device)


# -- single files


def _load_single_file(path: Path, dtype: torch.dtype, say: Progress) -> StableDiffusionModel:
    say(f"Reading {path.name}")
    config = read_config(path)
    state = read_state(path)
    geometry = read_geometry(state, config)
    say(f"Building the {geometry.family.upper()} model")
    unet = UNet2DConditionModel(**geometry.unet)
    fill(unet, convert_ldm_unet_checkpoint(dict(state), {**geometry.unet, "class_embed_type": None}), "UNet")
    vae = AutoencoderKL(**geometry.vae)
    vae_state = {key: value for key, value in state.items() if key.startswith(VAE_PREFIX)}
    fill(vae, convert_ldm_vae_checkpoint(vae_state, geometry.vae), "VAE")
    encoders = [_text_encoder(text, state, geometry.family) for text in geometry.text]
    if geometry.parameterization == "unknown":
        geometry.parameterization = "v" if predicts_v(unet) else "eps"
    return _assemble(geometry, unet, vae, encoders, dtype)


def _assemble(
    geometry: ModelGeometry,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    encoders: list[TextEncoder],
    dtype: torch.dtype,
) -> StableDiffusionModel:
    if dtype != torch.float32:  # diffusers warns about every cast, also one that does nothing
        for module in (unet, vae, *encoders):
            module.to(dtype)
    return StableDiffusionModel(
        family=geometry.family,
        unet=unet,
        vae=vae,
        encoders=encoders,
        scale_factor=geometry.scale_factor,
        parameterization=geometry.parameterization,
        alphas_cumprod=alpha_schedule(geometry.linear_start, geometry.linear_end, geometry.timesteps),
    )


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
    if text.vocab < VOCABULARY_SIZE:
        raise CheckpointError(f"The text encoder knows {text.vocab} tokens; CLIP's vocabulary has {VOCABULARY_SIZE}.")
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
        if text.projection is None:
            raise CheckpointError("The second text encoder of this SDXL checkpoint has no text_projection.")
        transformer = CLIPTextModelWithProjection(_text_config(text, text.layers))
        weights, role = open_clip_state(state, text.prefix), {"pad": 0, "layer": "penultimate", "pooled": True}
    fill(transformer, match_text_names(transformer, weights), "text encoder")
    return TextEncoder(transformer, **role)


# -- diffusers folders


def folder_weights(folder: Path, stem: str) -> Path:
    """The file with the weights of one part of a diffusers folder. Raises CheckpointError."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return folder / name
    if any((folder / f"{stem}{suffix}").is_file() for suffix in (".bin", ".fp16.bin")):
        check_not_pickled(Path(f"{folder.name}/{stem}.bin"))
    raise CheckpointError(
        f"The checkpoint folder has no weights in {folder.name}/ that can be read ({stem}.safetensors)."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The checkpoint folder has no readable {path.parent.name}/{path.name}.") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path.parent.name}/{path.name} of the checkpoint folder is not a configuration.")
    return parsed


def _folder_part(folder: Path, build: Callable[[dict[str, Any]], nn.Module], stem: str, what: str) -> nn.Module:
    config = {key: value for key, value in _json(folder / "config.json").items() if not key.startswith("_")}
    try:
        module = build(config)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The configuration of the {what} in this folder is not one that can be built."
        ) from error
    weights = read_state(folder_weights(folder, stem))
    if isinstance(module, (CLIPTextModel, CLIPTextModelWithProjection)):
        weights = match_text_names(module, {key.removeprefix("text_model."): v for key, v in weights.items()})
    elif isinstance(module, AutoencoderKL):
        weights = {modern_vae_key(key): value for key, value in weights.items()}
    fill(module, weights, what)
    return module


def _load_folder(path: Path, dtype: torch.dtype, say: Progress) -> StableDiffusionModel:
    say(f"Reading the folder {path.name}")
    unet = _folder_part(path / "unet", UNet2DConditionModel.from_config, DIFFUSERS_WEIGHTS, "UNet")
    vae = _folder_part(path / "vae", AutoencoderKL.from_config, DIFFUSERS_WEIGHTS, "VAE")
    assert isinstance(unet, UNet2DConditionModel) and isinstance(vae, AutoencoderKL)
    sdxl = (path / "text_encoder_2").is_dir()
    first_config = _json(path / "text_encoder" / "config.json")
    family = "sdxl" if sdxl else "sd2" if first_config.get("hidden_act") == "gelu" else "sd1"

    def clip(config: dict[str, Any]) -> nn.Module:
        return CLIPTextModel(CLIPTextConfig(**{**config, "eos_token_id": 49407, "bos_token_id": 49406}))

    def clip_projection(config: dict[str, Any]) -> nn.Module:
        return CLIPTextModelWithProjection(CLIPTextConfig(**{**config, "eos_token_id": 49407, "bos_token_id": 49406}))

    first = _folder_part(path / "text_encoder", clip, "model", "text encoder")
    if sdxl:
        second = _folder_part(path / "text_encoder_2", clip_projection, "model", "second text encoder")
        encoders = [
            TextEncoder(first, layer="penultimate"),
            TextEncoder(second, pad=0, layer="penultimate", pooled=True),
        ]
    elif family == "sd2":
        encoders = [TextEncoder(first, pad=0)]
    else:
        encoders = [TextEncoder(first, skippable=True)]
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    geometry = ModelGeometry(
        family=family,
        unet={},
        vae={},
        text=[],
        scale_factor=float(vae.config.scaling_factor),
        parameterization="v" if scheduler.get("prediction_type") == "v_prediction" else "eps",
        linear_start=float(scheduler.get("beta_start", 0.00085)),
        linear_end=float(scheduler.get("beta_end", 0.012)),
        timesteps=int(scheduler.get("num_train_timesteps", 1000)),
    )
    return _assemble(geometry, unet, vae, encoders, dtype)
