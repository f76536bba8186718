"""The geometry of the `shapes` checkpoint: an SD1 layout in small, built from diffusers and transformers classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from standalone.shapes.world import UNIT

SCALE_FACTOR = 0.18215
FINAL_NORM_BIAS = 0.25  # see `text_encoder`
CONTEXT_DIM = 64
TOKENS = 77
EOS_ID = 49407

# the same numbers as in models/shapes/shapes.yaml, which is what a WebUI reads
UNET_CONFIG: dict[str, Any] = {
    "sample_size": UNIT // 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "cross_attention_dim": CONTEXT_DIM,
    "attention_head_dim": 4,
}
VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    # 64 channels at least: group norm with 32 groups of one channel each would erase flat colours
    "block_out_channels": (64, 64, 64, 64),
    # the encoder is plain strided convolutions up to its middle block, the decoder has one block per level
    "layers_per_block": 0,
    "latent_channels": 4,
    "sample_size": UNIT,
    "scaling_factor": SCALE_FACTOR,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": CONTEXT_DIM,
    "intermediate_size": CONTEXT_DIM * 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}


def unet() -> UNet2DConditionModel:
    """The noise predictor, with fresh weights."""
    return UNet2DConditionModel(**UNET_CONFIG)


def vae() -> AutoencoderKL:
    """The autoencoder: factor 8, four channels, with fresh weights."""
    return AutoencoderKL(**VAE_CONFIG)


def text_encoder() -> CLIPTextModel:
    """A small CLIP text encoder with fresh weights.

    Its final layer norm is fixed with a bias of 0.25: the WebUI's prompt emphasis divides by the mean of the output,
    which a layer norm without bias makes zero.
    """
    model = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    final = final_norm(model)
    torch.nn.init.constant_(final.bias, FINAL_NORM_BIAS)
    final.requires_grad_(False)
    return model


def final_norm(model: CLIPTextModel) -> torch.nn.LayerNorm:
    """The final layer norm; transformers 5.6 dropped the `text_model` level of the module tree."""
    inner = getattr(model, "text_model", model)
    return inner.final_layer_norm


def noise_schedule() -> DDPMScheduler:
    """SD1's schedule: 1000 steps, "scaled linear" betas, noise as the target."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
    )
