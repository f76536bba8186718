"""Weights in the names of the original LDM code's single files.

The way back is diffusers' own (`convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint`); this is the direction it
lacks.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from lib_methods.checkpoints.ldm_names import unet_names, vae_name
from lib_methods.ldm_checkpoint import SD1_TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX


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


def ldm_clip_text(text: Any) -> dict[str, Tensor]:
    """A CLIP text encoder's weights in the names of SD1's single files, nested whatever version of transformers made
    it."""
    bare = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    return {f"{SD1_TEXT_PREFIX}text_model.{key}": value for key, value in bare.items()}
