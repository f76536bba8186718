"""Single files in LDM's and SGM's layout: the names of their weights, by those of diffusers and transformers, and
their yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lib_methods.errors import CheckpointError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
SD1_TEXT_PREFIX = "cond_stage_model.transformer."
SD2_TEXT_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
MAX_YAML_BYTES, MAX_YAML_DEPTH = 64 * 1024, 50
"""Ten times those of LDM's and SGM's own configurations."""


def read_yaml(checkpoint: Path) -> Mapping[str, Any] | None:
    """The parsed yaml with the checkpoint's name beside it, or None when there is none. Raises CheckpointError."""
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path.name}, the configuration beside the checkpoint, cannot be read.") from error
    if len(data) > MAX_YAML_BYTES:
        raise CheckpointError(
            f"{path.name}, the configuration beside the checkpoint, is larger than {MAX_YAML_BYTES // 1024} KB. "
            "It is not an LDM configuration; remove it or get the right one."
        )
    try:
        parsed = _parsed_yaml(data.decode("utf-8-sig"))
    except Exception as error:  # a number too long, a date that is none: PyYAML lets much through as it comes
        raise CheckpointError(f"{path.name}, the configuration beside the checkpoint, is not valid yaml.") from error
    if not isinstance(parsed, Mapping):
        raise CheckpointError(f"{path.name}, the configuration beside the checkpoint, is not an LDM configuration.")
    return parsed


def _parsed_yaml(text: str) -> Any:
    """`yaml.safe_load` for untrusted files: no deeper than `MAX_YAML_DEPTH`, and without aliases, by which a small
    file expands without end."""
    import yaml  # hosts have it; most callers of this module only want the names

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > MAX_YAML_DEPTH or self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("nested too deep, or an alias")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return yaml.load(text, Loader)


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
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TO_OPEN_CLIP = {
    **{theirs: ours for ours, theirs in (OPEN_CLIP_TOP | OPEN_CLIP_PARTS).items()},
    "text_projection.weight": "text_projection",
}


def unet_names(keys: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """LDM's name of every weight of the UNet, without `model.diffusion_model.`, by diffusers' name in `keys`."""
    per = int(config["layers_per_block"]) + 1
    attended = [name.startswith("Cross") for name in config["up_block_types"]]
    return {key: _unet_name(key, per, attended) for key in keys}


def _unet_name(key: str, per: int, attended: list[bool]) -> str:
    stem, kind = key.rsplit(".", 1)
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    part, *path = key.split(".")
    if part == "mid_block":
        sort, number, rest = path[0], int(path[1]), ".".join(path[2:])
        if sort == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * number}.{_resnet_name(rest)}"
    block, sort, number, rest = int(path[0]), path[1], int(path[2]), ".".join(path[3:])
    root, index = (
        ("input_blocks", 1 + block * per + number) if part == "down_blocks" else ("output_blocks", block * per + number)
    )
    if sort == "resnets":
        return f"{root}.{index}.0.{_resnet_name(rest)}"
    if sort == "attentions":
        return f"{root}.{index}.1.{rest}"
    if sort == "downsamplers":
        return f"input_blocks.{(block + 1) * per}.0.op.{kind}"
    return f"output_blocks.{block * per + per - 1}.{2 if attended[block] else 1}.conv.{kind}"


def _resnet_name(rest: str) -> str:
    name, kind = rest.rsplit(".", 1)
    return f"{_RESNET[name]}.{kind}"


def vae_name(key: str, levels: int) -> str:
    """LDM's name of a weight of the VAE, without `first_stage_model.`. levels: how many blocks each side has."""
    name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for old, new in _VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{old}.", f"mid.attn_1.{new}.")
    for index in range(2):
        name = name.replace(f"mid_block.resnets.{index}.", f"mid.block_{index + 1}.")
    for index in range(levels):
        name = name.replace(f"down_blocks.{index}.resnets.", f"down.{index}.block.")
        name = name.replace(f"down_blocks.{index}.downsamplers.0.", f"down.{index}.downsample.")
        name = name.replace(f"up_blocks.{index}.resnets.", f"up.{levels - 1 - index}.block.")
        name = name.replace(f"up_blocks.{index}.upsamplers.0.", f"up.{levels - 1 - index}.upsample.")
    return name


def modern_vae_key(key: str) -> str:
    """Older folders call the parts of the VAE's attention query, key, value and proj_attn."""
    for old, new in (("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")):
        if "attentions" in key:
            key = key.replace("." + old, "." + new)
    return key


def shared_text_name(name: str) -> str:
    """Early SD1 files lack the infix `text_model.` in their text encoder; the name with it, as nearly all have it."""
    rest = name.removeprefix(SD1_TEXT_PREFIX)
    if rest != name and rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        return f"{SD1_TEXT_PREFIX}text_model.{rest}"
    return name


def open_clip_name(key: str) -> str:
    """OpenCLIP's name of a text encoder's weight, without `text_model.`; query, key and value share one."""
    if key in _TO_OPEN_CLIP:
        return _TO_OPEN_CLIP[key]
    number, rest = key.removeprefix("encoder.layers.").split(".", 1)
    stem, kind = rest.rsplit(".", 1)
    part = f"{_TO_OPEN_CLIP[stem]}.{kind}" if stem in _TO_OPEN_CLIP else f"attn.in_proj_{kind}"
    return f"transformer.resblocks.{number}.{part}"


def open_clip_shape_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """transformers' names and shapes, without `text_model.`, as OpenCLIP has them: query, key and value in one."""
    found: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        name = open_clip_name(key)
        if name == "text_projection":
            shape = shape[::-1]
        found[name] = (3 * shape[0], *shape[1:]) if ".attn.in_proj_" in name else shape
    return found
