"""Weights into modules: what this version of the libraries calls them, and whether they are all there and fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lib_methods.checkpoints.layout import check_weights
from lib_methods.checkpoints.ldm_names import OPEN_CLIP_PARTS, OPEN_CLIP_TOP
from lib_methods.errors import CheckpointError


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Loads `state` into `module`: every weight must be there, fit and be finite; others are ignored."""
    # transformers before 4.31 counts the text's positions in a buffer, which files may lack: it is filled already
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}
    check_weights({k: tuple(v.shape) for k, v in wanted.items()}, {k: v.shape for k, v in state.items()}, what)
    module.load_state_dict({key: state[key] for key in wanted}, strict=False)
    for key, value in wanted.items():  # these share the module's memory
        if value.is_floating_point() and not bool(value.sum(dtype=torch.float32).isfinite()):
            raise CheckpointError(
                f"The {what} of this checkpoint has weights that are NaN or infinite ('{key}'), so its images would be "
                "black or noise. The file was damaged when it was made: get another version of the model."
            )


def match_text_names(transformer: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames text weights, given without the infix `text_model.`, to what this version of transformers calls them."""
    infix = "text_model." if hasattr(transformer, "text_model") else ""
    return {key if key.startswith("text_projection") else infix + key: value for key, value in weights.items()}


def open_clip_state(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's text weights in transformers' names, without the infix `text_model.`.

    diffusers has such a function, too, but with the sizes and the number of layers of the published models built in.
    """
    out: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        if name in OPEN_CLIP_TOP:
            out[OPEN_CLIP_TOP[name]] = value
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
                out[f"{layer}{OPEN_CLIP_PARTS.get(stem, stem)}.{kind}"] = value
    return out
