"""A text encoder's weights in the names and shapes of single files: CLIP's nested ones, or OpenCLIP's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_methods.ldm_checkpoint import SD1_TEXT_PREFIX, SD2_TEXT_PREFIX, SDXL_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX

_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def file_text(transformer: Any, family: str, number: int) -> dict[str, Tensor]:
    """The weights of the text encoder `number` (from 0) of a model of `family`, by their names in the file.

    Always nested (`text_model.`), whatever version of transformers holds them. SD2's encoder lacks the file's last
    layer, which conditions nothing.
    """
    bare = {key.removeprefix("text_model."): value.detach() for key, value in transformer.state_dict().items()}
    bare.pop("embeddings.position_ids", None)  # no weight; older versions of transformers list it
    if family == "sd1":
        return {f"{SD1_TEXT_PREFIX}text_model.{key}": value for key, value in bare.items()}
    if family == "sd2":
        return open_clip_names(bare, SD2_TEXT_PREFIX)
    if number == 0:
        return {f"{SDXL_CLIP_PREFIX}text_model.{key}": value for key, value in bare.items()}
    return open_clip_names(bare, SDXL_OPEN_CLIP_PREFIX)


def open_clip_names(bare: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """transformers' weights, without `text_model.`, as OpenCLIP has them: query, key and value in one matrix, the
    projection transposed."""
    out: dict[str, Tensor] = {}
    for key, value in bare.items():
        if key in _TOP:
            out[_TOP[key]] = value
        elif key == "text_projection.weight":
            out["text_projection"] = value.T.contiguous()
        elif key.startswith("encoder.layers."):
            number, stem, kind = _split(key)
            layer = f"transformer.resblocks.{number}."
            if stem == "self_attn.q_proj":
                thirds = [bare[f"encoder.layers.{number}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                out[f"{layer}attn.in_proj_{kind}"] = torch.cat(thirds)
            elif stem in _PARTS:
                out[f"{layer}{_PARTS[stem]}.{kind}"] = value
    return {prefix + key: value for key, value in out.items()}


def _split(key: str) -> tuple[str, str, str]:
    """Layer, part and kind of `encoder.layers.3.mlp.fc1.weight`."""
    number, rest = key.removeprefix("encoder.layers.").split(".", 1)
    stem, kind = rest.rsplit(".", 1)
    return number, stem, kind
