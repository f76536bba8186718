"""Write `shapes` as a WebUI takes it: `python -m standalone.shapes.export --from TRAINING_DIR --out models/shapes`.

One `.safetensors` file in half precision with the original LDM key names, and the yaml with its geometry beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from lib_methods.safetensors import rounded, write_tensors
from standalone.engine.weights import ldm_clip_text, ldm_networks, ldm_unet, ldm_vae
from standalone.shapes import networks


def ldm_config() -> dict[str, Any]:
    """The yaml beside the file. `version` is the folder with the tokenizer and the text encoder's sizes."""
    unet, vae = networks.UNET_CONFIG, networks.VAE_CONFIG
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": networks.SCALE_FACTOR,
        "use_ema": False,
        **ldm_networks(unet, vae, image_size=unet["sample_size"], resolution=vae["sample_size"]),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": "text_encoder", **{name: networks.TEXT_CONFIG[name] for name in sizes}},
        },
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": 1e-4, "target": target, "params": params}}


def load_networks(training: Path) -> tuple[Any, Any, Any]:
    """UNet, text encoder and VAE from a training folder, with the averaged weights."""
    unet, text, vae = networks.unet(), networks.text_encoder(), networks.vae()
    both = torch.load(training / "state.pt", weights_only=True)["average"]
    unet.load_state_dict({k[2:]: v for k, v in both.items() if k.startswith("0.")})
    text.load_state_dict({k[2:]: v for k, v in both.items() if k.startswith("1.")})
    vae.load_state_dict(load_file(training / "vae.safetensors"))
    return unet.eval(), text.eval(), vae.eval()


def export(training: Path, out: Path) -> Path:
    """Write `shapes.safetensors` and `shapes.yaml` into `out`; returns the checkpoint's path."""
    unet, text, vae = load_networks(training)
    state: dict[str, Tensor] = {**ldm_unet(unet), **ldm_vae(vae), **ldm_clip_text(text)}
    halves = {key: rounded(key, value, torch.float16) for key, value in state.items() if value.is_floating_point()}
    out.mkdir(parents=True, exist_ok=True)
    target = out / "shapes.safetensors"
    write_tensors(target, halves, {"modelspec.title": "shapes", "modelspec.license": "MIT"})
    target.with_suffix(".yaml").write_text(yaml.safe_dump(ldm_config(), sort_keys=False), encoding="utf-8")
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="training", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "models" / "shapes")
    options = parser.parse_args()
    print(export(options.training, options.out))
