"""Makes the checkpoints that the forks are tested with: `python -m tests.webui.models [KIND ...]`.

Forge and its forks guess a model's family from the names of its weights and a few widths, not from its depth. So these
have the width of Stable Diffusion, its text encoders and its VAE, but few layers; all weights are random. They are
written once per user into the temporary folder, or into STEER_TEST_MODELS.
"""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lib_methods.safetensors import write_tensors

VERSION = 1  # part of the folder's name: raise it when the weights change
KINDS = {
    "sd1": {"in_channels": 4},
    "sd1-edit": {"in_channels": 8},  # as InstructPix2Pix
    "sd1-inpainting": {"in_channels": 9},
}
ATTENTION_GAIN = 4.0  # on the outputs of attention, without which prompts and likes hardly matter in a random model
TEXT_MEAN = 0.3  # as trained encoders have; the hosts' emphasis divides by it
CONTEXT = 768


def made(kind: str) -> Path:
    """The checkpoint of one of `KINDS`, with its yaml beside it; made if it is not there yet."""
    named = os.environ.get("STEER_TEST_MODELS")
    folder = Path(named or Path(tempfile.gettempdir()) / f"steer-test-models-{getpass.getuser()}-{VERSION}")
    target = folder / f"{kind}.safetensors"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            write_tensors(target, _halves(**KINDS[kind]), {})
        target.with_suffix(".yaml").write_text(yaml.safe_dump(_yaml(**KINDS[kind])), encoding="utf-8")
    return target


def _halves(in_channels: int) -> dict[str, Tensor]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from standalone.engine.weights import ldm_clip_text, ldm_unet, ldm_vae

    unet = UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(320,) * 3,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,  # diffusers' name for the number of heads
    )
    for name, module in unet.named_modules():
        if name.endswith("to_out.0"):
            module.weight.data *= ATTENTION_GAIN
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=CONTEXT, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    for name, parameter in text.named_parameters():
        if name.endswith("final_layer_norm.bias"):
            nn.init.constant_(parameter, TEXT_MEAN)
    state = {**ldm_unet(unet), **ldm_vae(vae), **ldm_clip_text(text)}
    return {key: value.half().contiguous() for key, value in state.items() if value.is_floating_point()}


def _yaml(in_channels: int) -> dict[str, Any]:
    """What AUTOMATIC1111's WebUI wants to know; the forks do not read it."""
    unet = {
        "image_size": 32,
        "in_channels": in_channels,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 1,
        "channel_mult": [1, 1, 1],
        "num_heads": 8,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": CONTEXT,
        "use_checkpoint": False,
        "legacy": False,
    }
    vae = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    kinds = {
        4: ("ldm.models.diffusion.ddpm.LatentDiffusion", "crossattn"),
        8: ("modules.models.diffusion.ddpm_edit.LatentDiffusion", "hybrid"),
        9: ("ldm.models.diffusion.ddpm.LatentInpaintDiffusion", "hybrid"),
    }
    target, conditioning = kinds[in_channels]
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "conditioning_key": conditioning,
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": vae, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"num_attention_heads": 12},
        },
    }
    return {"model": {"target": target, "params": params}}


if __name__ == "__main__":
    for wanted in sys.argv[1:] or KINDS:
        print(made(wanted))
