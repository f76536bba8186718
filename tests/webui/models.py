"""Makes the checkpoints that the forks are tested with: `python -m tests.webui.models [KIND ...]`.

Forge and its forks guess a model's family from the names of its weights and a few widths and depths: for SDXL, the
transformers' depth on the way down. So these have the width and depth that are looked at, the published text encoders'
size and the published VAE's, but few layers otherwise; all weights are random. They are written once per user into the
temporary folder, or into STEER_TEST_MODELS.
"""

from __future__ import annotations

import getpass
import os
import struct
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lib_methods.safetensors import read_tensors, write_tensors

VERSION = 2  # part of the folder's name: raise it when the files change
KINDS: dict[str, dict[str, Any]] = {
    "sd1": {"in_channels": 4},
    "sd1-uneven": {"word_gain": 12.0},  # whose words attend to some places more than to others, for masks by word
    "sd1-edit": {"in_channels": 8},  # as InstructPix2Pix
    "sd1-inpainting": {"in_channels": 9},
    "sdxl": {"is_xl": True},
    "mugen": {"in_channels": 32, "latent_channels": 32, "is_xl": True},  # SDXL on Flux.2's latents, of flow matching
}
MARKED = {"sdxl-v": ("sdxl", ("v_pred", "ztsnr"))}  # the same weights, marked for v-prediction and zero SNR as NoobAI's
ATTENTION_GAIN = 4.0  # on the outputs of attention, without which prompts and likes hardly matter in a random model
TEXT_MEAN = 0.3  # as trained encoders have; the hosts' emphasis divides by it
WORD_GAIN = 50.0  # on SDXL's token embeddings: its conds are a hidden layer, which no norm brings to a scale
LDM_CLASSES = {
    4: ("ldm.models.diffusion.ddpm.LatentDiffusion", "crossattn"),
    8: ("modules.models.diffusion.ddpm_edit.LatentDiffusion", "hybrid"),
    9: ("ldm.models.diffusion.ddpm.LatentInpaintDiffusion", "hybrid"),
}


def made(kind: str) -> Path:
    """The checkpoint of one of `KINDS` or `MARKED`, "anima", or "sd1-q8", which is "sd1" in 8 bits as GGUF; made if it
    is not there yet. Of SD1 with its yaml."""
    named = os.environ.get("STEER_TEST_MODELS")
    folder = Path(named or Path(tempfile.gettempdir()) / f"steer-test-models-{getpass.getuser()}-{VERSION}")
    target = folder / f"{kind}.{'gguf' if kind == 'sd1-q8' else 'safetensors'}"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "anima":
        write_tensors(target, _anima())
    elif kind == "sd1-q8":
        write_gguf(target, read_tensors(made("sd1"))[0])
    elif kind in MARKED:
        of, marks = MARKED[kind]
        write_tensors(target, {**read_tensors(made(of))[0], **dict.fromkeys(marks, torch.zeros(0))})
    else:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            _write(target, **KINDS[kind])
    return target


def _write(
    target: Path, in_channels: int = 4, is_xl: bool = False, latent_channels: int = 4, word_gain: float = 1.0
) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from lib_methods.checkpoints.ldm_names import VAE_PREFIX
    from standalone.engine.weights import ldm_clip_text, ldm_networks, ldm_unet, ldm_vae
    from tests.standalone.tiny import open_clip_text

    sizes: dict[str, Any] = {
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # diffusers' name for the number of heads
    }
    if is_xl:
        sizes = {
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": 5,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    channels = {"in_channels": in_channels, "out_channels": latent_channels}
    unet = UNet2DConditionModel(block_out_channels=(320,) * 3, **channels, **sizes)
    for name, module in unet.named_modules():
        if name.endswith("to_out.0"):
            module.weight.data *= ATTENTION_GAIN
        elif name.endswith("attn2.to_k"):
            module.weight.data *= word_gain
    vae = AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    state = {**ldm_unet(unet), **ldm_vae(vae)}
    if latent_channels == 32:  # Flux.2's autoencoder normalises its latents, four positions together
        norm = f"{VAE_PREFIX}bn.running"
        state |= {f"{norm}_mean": torch.zeros(128), f"{norm}_var": torch.ones(128)}
    first = _text(width=768, layers=12, heads=12)
    if is_xl:
        torch.set_default_dtype(torch.float16)  # as this one alone would take 3 GB
        second = _text(width=1280, layers=32, heads=20, hidden_act="gelu", projection_dim=1280)
        torch.set_default_dtype(torch.float32)
        for text in (first, second):
            text.get_input_embeddings().weight.data *= WORD_GAIN
        plain = {f"conditioner.embedders.0.{key.split('.', 1)[1]}": v for key, v in ldm_clip_text(first).items()}
        state |= {**plain, **open_clip_text(second, "conditioner.embedders.1.model.", extra_layer=False)}
    else:
        state |= ldm_clip_text(first)
        model, conditioning = LDM_CLASSES[in_channels]
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
            **ldm_networks(unet.config, vae.config, image_size=32, resolution=256),
            "cond_stage_config": {
                "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                "params": {"num_attention_heads": 12},
            },
        }
        if in_channels == 9:
            params["finetune_keys"] = None  # otherwise it must be told from which checkpoint to start
        told = {"model": {"target": model, "params": params}}  # to AUTOMATIC1111's WebUI; the forks do not read it
        target.with_suffix(".yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    halves = {key: value.half().contiguous() for key, value in state.items() if value.is_floating_point()}
    write_tensors(target, halves)


def _text(width: int, layers: int, heads: int, **config: Any) -> Any:
    """A CLIP text encoder, with a projection where its width is given."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    kind = CLIPTextModelWithProjection if "projection_dim" in config else CLIPTextModel
    text = kind(CLIPTextConfig(**sizes, num_attention_heads=heads, **config))
    for name, parameter in text.named_parameters():
        if name.endswith("final_layer_norm.bias"):
            nn.init.constant_(parameter, TEXT_MEAN)
    return text


def write_gguf(target: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a GGUF file (version 3): the UNet's matrices as Q8_0, everything else in half precision."""
    infos, data = b"", []
    for name, tensor in state.items():
        is_matrix = name.startswith("model.diffusion_model.") and tensor.dim() == 2 and tensor.shape[1] % 32 == 0
        data.append(_q8(tensor) if is_matrix else tensor.half().numpy().tobytes())
        start = sum(len(part) + -len(part) % 32 for part in data[:-1])
        sizes = struct.pack(f"<I{tensor.dim()}Q", tensor.dim(), *reversed(tensor.shape))
        infos += struct.pack("<Q", len(name)) + name.encode() + sizes + struct.pack("<IQ", 8 if is_matrix else 1, start)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(state), 0) + infos
    target.write_bytes(b"".join(part + bytes(-len(part) % 32) for part in (head, *data)))


def _q8(matrix: Tensor) -> bytes:
    """Each 32 numbers as a scale in half precision and 8 bits for each."""
    numbers = matrix.float().view(-1, 32)
    scales = numbers.abs().amax(1, keepdim=True).half() / 127
    blocks = np.empty(len(numbers), dtype=[("scale", "<f2"), ("numbers", "i1", 32)])
    blocks["scale"] = scales[:, 0].numpy()
    blocks["numbers"] = (numbers / scales.float().clamp_min(1e-12)).round().clamp(-127, 127).numpy()
    return blocks.tobytes()


def _anima() -> dict[str, Tensor]:
    """The few weights by which Forge Neo knows Anima. It leaves the others as they are in fresh memory, which is enough
    to load the model, not to generate an image with it."""
    unet, zeros = "model.diffusion_model.", partial(torch.zeros, dtype=torch.bfloat16)
    known = {
        f"{unet}x_embedder.proj.1.weight": zeros(2048, 68),
        f"{unet}blocks.0.mlp.layer1.weight": zeros(8192, 2048),
        f"{unet}llm_adapter.blocks.0.cross_attn.q_proj.weight": zeros(1024, 1024),
    }
    parts = (unet, "text_encoders.qwen3_06b.transformer.", "vae.")
    return known | {f"{part}unused.{n}": zeros(1) for part in parts for n in range(17)}  # each must have that many


if __name__ == "__main__":
    for wanted in sys.argv[1:] or (*KINDS, *MARKED, "sd1-q8", "anima"):
        print(made(wanted))
