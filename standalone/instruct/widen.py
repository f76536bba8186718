"""Widens a UNet by 4 zero-weight input channels for an image, and writes the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DConditionModel

from lib_methods.safetensors import rounded, write_tensors
from standalone.engine.weights import ldm_clip_text, ldm_networks, ldm_unet, ldm_vae
from standalone.instruct.dataset import write_whole

TARGET = "modules.models.diffusion.ddpm_edit.LatentDiffusion"
"""The class that the WebUI's own configuration of InstructPix2Pix names."""


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with twice the input channels. The new weights are zero, so that it computes what `unet` computes,
    whatever the image."""
    channels = int(unet.config.in_channels)
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    wide = UNet2DConditionModel(**{**config, "in_channels": 2 * channels})
    state = dict(unet.state_dict())
    old = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([old, torch.zeros_like(old)], dim=1)
    wide.load_state_dict(state)
    return wide.to(unet.device)


def edit_config(model: Any, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The yaml for the WebUI: the checkpoint's own one, or one of SD1's form with the model's sizes, made one of an
    InstructPix2Pix model."""
    known = copy.deepcopy(dict(config)) if config is not None else {}
    top = known.get("model")
    if not isinstance(top, dict) or not isinstance(top.get("params"), dict) or "unet_config" not in top["params"]:
        known = {"model": {"params": _sd1_params(model)}}
    known["model"]["target"] = TARGET
    params = known["model"]["params"]
    params |= {"first_stage_key": "edited", "cond_stage_key": "edit", "conditioning_key": "hybrid", "use_ema": False}
    params["unet_config"].setdefault("params", {})["in_channels"] = 2 * model.latent_channels
    return {"model": known["model"]}


def _sd1_params(model: Any) -> dict[str, Any]:
    unet, vae = model.model.diffusion_model.config, model.first_stage_model.config
    return {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "timesteps": len(model.alphas_cumprod),
        "image_size": 64,
        "channels": model.latent_channels,
        "scale_factor": model.scale_factor,
        **ldm_networks(unet, vae, image_size=32, resolution=256),
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }


def write_checkpoint(model: Any, unet: UNet2DConditionModel, config: Mapping[str, Any] | None, out: Path) -> None:
    """Writes `unet` with the model's VAE and text encoder to one file in LDM's names and half precision, and the yaml
    beside it. Both appear whole; the yaml first."""
    state = {**ldm_unet(unet), **ldm_vae(model.first_stage_model), **ldm_clip_text(model.cond_stage_model.transformer)}
    halves = {k: rounded(k, value, torch.float16) for k, value in state.items() if value.is_floating_point()}
    out.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(edit_config(model, config), sort_keys=False)
    write_whole(out.with_suffix(".yaml"), text.encode())
    write_tensors(out, halves, {"format": "pt", "modelspec.title": out.stem})
