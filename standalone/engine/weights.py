"""Weights into modules: what this version of the libraries calls them, and whether they are all there and fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .errors import CheckpointError


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Loads `state` into `module`: every weight must be there and fit, others are ignored."""
    # transformers before 4.31 counts the text's positions in a buffer, which files may lack: it is filled already
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}
    missing = [key for key in wanted if key not in state]
    wrong = [key for key in wanted if key in state and wanted[key].shape != state[key].shape]
    if missing or wrong:
        example = (missing or wrong)[0]
        raise CheckpointError(
            f"The {what} of this checkpoint does not fit: {len(missing)} weights are missing and {len(wrong)} have "
            f"another size (for example '{example}')."
        )
    module.load_state_dict({key: state[key] for key in wanted}, strict=False)


def match_text_names(transformer: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames text weights, given without the infix `text_model.`, to what this version of transformers calls them."""
    infix = "text_model." if hasattr(transformer, "text_model") else ""
    return {key if key.startswith("text_projection") else infix + key: value for key, value in weights.items()}


_OPEN_CLIP_NAMES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def open_clip_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's text weights in transformers' names, without the infix `text_model.`.

    diffusers has such a function, too, but with the sizes and the number of layers of the published models built in.
    """
    out: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        if name in _OPEN_CLIP_NAMES:
            out[_OPEN_CLIP_NAMES[name]] = value
        elif name == "text_projection":
            out["text_projection.weight"] = value.T.contiguous()
        elif name.startswith("transformer.resblocks."):
            number, part = name[len("transformer.resblocks.") :].split(".", 1)
            layer = f"encoder.layers.{number}."
            if part.startswith("attn.in_proj_"):
                for letter, third in zip("qkv", value.chunk(3, dim=0)):
                    out[f"{layer}self_attn.{letter}_proj.{part[len('attn.in_proj_') :]}"] = third.contiguous()
            else:
                stem, kind = part.rsplit(".", 1)
                out[f"{layer}{_OPEN_CLIP_PARTS.get(stem, stem)}.{kind}"] = value
    return out


def modern_vae_key(key: str) -> str:
    """Older folders call the parts of the VAE's attention query, key, value and proj_attn."""
    for old, new in (("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")):
        if "attentions" in key:
            key = key.replace("." + old, "." + new)
    return key
