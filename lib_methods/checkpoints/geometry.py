"""Reads the sizes of a Stable Diffusion model from the shapes of its weights; the weights themselves are not needed.

The keys are those of the original LDM and SGM code (`model.diffusion_model.*`, `first_stage_model.*`,
`cond_stage_model.*`, `conditioner.embedders.*`). Shapes give everything except the number of attention heads, the
scale of the latents, the noise schedule and the parameterization; those come from an LDM yaml beside the file, and
without one from the published models of the family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lib_methods.checkpoints.ldm_names import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
)
from lib_methods.errors import CheckpointError


class Shaped(Protocol):
    """A tensor, or what its header tells about it."""

    @property
    def shape(self) -> Sequence[int]: ...


State = Mapping[str, Shaped]
_MOST = 1000  # blocks or layers
NO_MIDDLE = (
    "The UNet of this checkpoint has no attention in its middle block: it is a distilled model such as SSD-1B or "
    "Segmind Vega, which is not supported. Choose an SDXL checkpoint in full size."
)


@dataclass(frozen=True)
class TextGeometry:
    """Sizes of one text encoder. `open_clip` says which key layout and which activation it has."""

    prefix: str
    open_clip: bool
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    vocab: int
    projection: int | None = None


def _count(state: State, pattern: str) -> int:
    """One more than the largest number that group 1 of `pattern` takes in the keys, 0 when no key matches."""
    regex = re.compile(pattern)
    count = 1 + max((int(m.group(1)) for m in map(regex.match, state) if m), default=-1)
    if count > _MOST:
        raise CheckpointError(
            "This checkpoint names more blocks than any model has, so it is damaged. Download it again."
        )
    return count


def _shape(state: State, key: str) -> tuple[int, ...]:
    try:
        return tuple(state[key].shape)
    except KeyError:
        raise CheckpointError(f"The checkpoint is incomplete: the weight '{key}' is missing.") from None


def unet_geometry(state: State, family: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a diffusers UNet2DConditionModel for the LDM weights in `state`.

    `params` are `unet_config.params` of the yaml; of these only the number of heads is used, since the weights have
    no trace of it. Without them SD1 has 8 heads everywhere, SD2 and SDXL heads of 64 channels.
    """
    params = params or {}
    base, in_channels = _shape(state, UNET_PREFIX + "input_blocks.0.0.weight")[:2]
    out_channels = _shape(state, UNET_PREFIX + "out.2.weight")[0]
    blocks = re.escape(UNET_PREFIX) + r"input_blocks"
    count = _count(state, blocks + r"\.(\d+)\.")

    channels: list[int] = []
    depths: list[int] = []
    resnets: list[int] = []
    level_done = True
    context: int | None = None
    for index in range(1, count):
        name = f"{UNET_PREFIX}input_blocks.{index}"
        if f"{name}.0.op.weight" in state:
            level_done = True
            continue
        width = _shape(state, f"{name}.0.out_layers.3.weight")[0]
        if level_done:
            channels.append(width)
            depths.append(0)
            resnets.append(0)
            level_done = False
        resnets[-1] += 1
        depth = _count(state, re.escape(name) + r"\.1\.transformer_blocks\.(\d+)\.")
        depths[-1] = max(depths[-1], depth)
        if depth:
            context = _shape(state, f"{name}.1.transformer_blocks.0.attn2.to_k.weight")[1]
    if not channels or len(set(resnets)) != 1:
        raise CheckpointError("The UNet of this checkpoint has levels of unequal depth, which is not supported.")
    mid_depth = _count(state, re.escape(UNET_PREFIX) + r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    if context is None:
        raise CheckpointError("The UNet of this checkpoint has no cross attention to text.")
    if not mid_depth:
        raise CheckpointError(NO_MIDDLE)
    if depths[-1] not in (0, mid_depth):
        raise CheckpointError("The middle block of this UNet is deeper than its last level, which is not supported.")

    if params.get("num_heads", -1) not in (None, -1):
        heads = [int(params["num_heads"])] * len(channels)
    else:
        default = 64 if family != "sd1" else None
        per_head = params.get("num_head_channels", -1)
        per_head = default if per_head in (None, -1) else int(per_head)
        heads = [8] * len(channels) if per_head is None else [max(1, width // per_head) for width in channels]
    for width, head in zip(channels, heads):
        if width % head:
            raise CheckpointError(f"{width} channels do not split into {head} heads; see num_heads in the yaml.")

    attention = [depth > 0 for depth in depths]
    config: dict[str, Any] = {
        "sample_size": 128 if family == "sdxl" else 64,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "block_out_channels": tuple(channels),
        "layers_per_block": resnets[0],
        "cross_attention_dim": context,
        "attention_head_dim": tuple(heads),
        # diffusers gives the middle block the depth of the last level, even if that level has no attention itself
        "transformer_layers_per_block": tuple(depth or 1 for depth in depths[:-1]) + (mid_depth,),
        "use_linear_projection": len(_shape(state, UNET_PREFIX + "middle_block.1.proj_in.weight")) == 2,
        "upcast_attention": family == "sd2",
    }
    if channels[0] != base:
        raise CheckpointError("The first level of this UNet does not have channel_mult 1, which is not supported.")
    label = UNET_PREFIX + "label_emb.0.0.weight"
    if label in state:
        if family != "sdxl":
            raise CheckpointError(
                "This checkpoint is conditioned on image embeddings (unCLIP), which is not supported."
            )
        config.update(
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=_shape(state, label)[1],
        )
    return config


def vae_geometry(state: State) -> dict[str, Any]:
    """The configuration of a diffusers AutoencoderKL for the LDM weights in `state`."""
    p = VAE_PREFIX
    # read from the decoder, which has a block at every level even where the encoder has none
    levels = _count(state, re.escape(p) + r"decoder\.up\.(\d+)\.")
    if not levels:
        raise CheckpointError("This checkpoint has no VAE. Use one that includes a VAE.")
    channels = tuple(_shape(state, f"{p}decoder.up.{i}.block.0.conv2.weight")[0] for i in range(levels))
    if any(f"{p}encoder.down.{i}.attn.0.q.weight" in state for i in range(levels)):
        raise CheckpointError("A VAE with attention outside its middle block is not supported.")
    return {
        "in_channels": _shape(state, p + "encoder.conv_in.weight")[1],
        "out_channels": _shape(state, p + "decoder.conv_out.weight")[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": channels,
        "layers_per_block": _count(state, re.escape(p) + r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        "latent_channels": _shape(state, p + "decoder.conv_in.weight")[1],
        "sample_size": 512,
    }


def clip_geometry(state: State, prefix: str, heads: int = 0) -> TextGeometry:
    """Sizes of a CLIP text encoder in transformers' key layout, with or without the infix `text_model.`. heads: 0
    for heads of 64 channels."""
    root = prefix + ("text_model." if any(k.startswith(prefix + "text_model.") for k in state) else "")
    vocab, hidden = _shape(state, root + "embeddings.token_embedding.weight")
    return TextGeometry(
        prefix=root,
        open_clip=False,
        hidden=hidden,
        layers=_count(state, re.escape(root) + r"encoder\.layers\.(\d+)\."),
        heads=heads or max(1, hidden // 64),
        intermediate=_shape(state, root + "encoder.layers.0.mlp.fc1.weight")[0],
        positions=_shape(state, root + "embeddings.position_embedding.weight")[0],
        vocab=vocab,
    )


def open_clip_geometry(state: State, prefix: str, heads: int = 0) -> TextGeometry:
    """Sizes of a text encoder in OpenCLIP's key layout. heads: as for `clip_geometry`."""
    vocab, hidden = _shape(state, prefix + "token_embedding.weight")
    projection = state.get(prefix + "text_projection")
    return TextGeometry(
        prefix=prefix,
        open_clip=True,
        hidden=hidden,
        layers=_count(state, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
        heads=heads or max(1, hidden // 64),
        intermediate=_shape(state, prefix + "transformer.resblocks.0.mlp.c_fc.weight")[0],
        positions=_shape(state, prefix + "positional_embedding")[0],
        vocab=vocab,
        projection=None if projection is None else int(projection.shape[1]),
    )


def ldm_params(yaml: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """`model.params` of an LDM or SGM configuration, {} where there is none. Raises CheckpointError."""
    model = (yaml or {}).get("model") or {}
    params = model.get("params") or {} if isinstance(model, Mapping) else None
    if not isinstance(params, Mapping):
        raise CheckpointError("The yaml beside the checkpoint has no model.params section, which LDM's have.")
    return params


def part_params(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """`params[name]["params"]` for the first of `names` that is there, else {}."""
    for name in names:
        part = params.get(name)
        if isinstance(part, Mapping) and isinstance(part.get("params"), Mapping):
            return dict(part["params"])
    return {}


def text_geometries(state: State, family: str, params: Mapping[str, Any]) -> list[TextGeometry]:
    """The text encoders of a file of `family`. params: `model.params` of its yaml."""
    heads = int(part_params(params, "cond_stage_config").get("num_attention_heads") or 0)
    if family == "sd1":
        return [clip_geometry(state, SD1_TEXT_PREFIX, heads)]
    if family == "sd2":
        return [open_clip_geometry(state, SD2_TEXT_PREFIX, heads)]
    return [clip_geometry(state, SDXL_CLIP_PREFIX), open_clip_geometry(state, SDXL_OPEN_CLIP_PREFIX)]
