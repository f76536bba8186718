"""Names of weights: from diffusers' modules to the single-file checkpoints of the original LDM code.

The way back is diffusers' own (`convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint`); this is the direction it
lacks.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _rename_resnet(rest: str) -> str:
    name, kind = rest.rsplit(".", 1)
    return f"{_RESNET[name]}.{kind}"


def ldm_unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """LDM's name of every weight of the UNet, without `model.diffusion_model.`, by diffusers' name."""
    per = unet.config.layers_per_block + 1
    attended = [name.startswith("Cross") for name in unet.config.up_block_types]
    out: dict[str, str] = {}
    for key in unet.state_dict():
        stem, kind = key.rsplit(".", 1)
        if stem in _TOP:
            out[key] = f"{_TOP[stem]}.{kind}"
            continue
        part, *path = key.split(".")
        if part == "mid_block":
            sort, number, rest = path[0], int(path[1]), ".".join(path[2:])
            name = (
                f"middle_block.1.{rest}"
                if sort == "attentions"
                else f"middle_block.{2 * number}.{_rename_resnet(rest)}"
            )
        else:
            block, sort, number, rest = int(path[0]), path[1], int(path[2]), ".".join(path[3:])
            root, index = (
                ("input_blocks", 1 + block * per + number)
                if part == "down_blocks"
                else ("output_blocks", block * per + number)
            )
            if sort == "resnets":
                name = f"{root}.{index}.0.{_rename_resnet(rest)}"
            elif sort == "attentions":
                name = f"{root}.{index}.1.{rest}"
            elif sort == "downsamplers":
                name = f"input_blocks.{(block + 1) * per}.0.op.{kind}"
            else:
                name = f"output_blocks.{block * per + per - 1}.{2 if attended[block] else 1}.conv.{kind}"
        out[key] = name
    return out


def ldm_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights in LDM's names."""
    state = unet.state_dict()
    return {f"model.diffusion_model.{name}": state[key] for key, name in ldm_unet_names(unet).items()}


def ldm_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The VAE's weights in LDM's names."""
    levels = len(vae.config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out: dict[str, Tensor] = {}
    for key, value in vae.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for old, new in attention.items():
            if f"mid_block.attentions.0.{old}." in name:
                name = name.replace(f"mid_block.attentions.0.{old}.", f"mid.attn_1.{new}.")
                value = value[:, :, None, None] if value.ndim == 2 else value
        for index in range(2):
            name = name.replace(f"mid_block.resnets.{index}.", f"mid.block_{index + 1}.")
        for index in range(levels):
            name = name.replace(f"down_blocks.{index}.resnets.", f"down.{index}.block.")
            name = name.replace(f"down_blocks.{index}.downsamplers.0.", f"down.{index}.downsample.")
            name = name.replace(f"up_blocks.{index}.resnets.", f"up.{levels - 1 - index}.block.")
            name = name.replace(f"up_blocks.{index}.upsamplers.0.", f"up.{levels - 1 - index}.upsample.")
        out[f"first_stage_model.{name}"] = value.contiguous()
    return out


def ldm_clip_text(text: Any) -> dict[str, Tensor]:
    """A CLIP text encoder's weights in the names of SD1's single files, nested whatever version of transformers made
    it."""
    bare = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    return {f"cond_stage_model.transformer.text_model.{key}": value for key, value in bare.items()}
