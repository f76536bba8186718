"""A model's weights in the names and shapes of single files, also those of a diffusers folder as they are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lib_methods.checkpoints.ldm_names import open_clip_name
from lib_methods.checkpoints.reader import TEXT_PARTS
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.errors import UserError
from lib_methods.ldm_checkpoint import SD1_TEXT_PREFIX, SD2_TEXT_PREFIX, SDXL_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX
from standalone.engine.checkpoint import part_state, read
from standalone.engine.model import StableDiffusionModel
from standalone.engine.weights import ldm_unet, ldm_vae


def file_text(state: Mapping[str, Tensor], family: str, number: int) -> dict[str, Tensor]:
    """The weights of the text encoder `number` (from 0) of a model of `family`: CLIP's names, or OpenCLIP's.

    Always nested (`text_model.`), whatever version of transformers holds them. SD2's encoder lacks the file's last
    layer, which conditions nothing.
    """
    bare = {key.removeprefix("text_model."): value.detach() for key, value in state.items()}
    bare.pop("embeddings.position_ids", None)  # no weight; older versions of transformers list it
    if family == "sd2" or number:
        prefix = SD2_TEXT_PREFIX if family == "sd2" else SDXL_OPEN_CLIP_PREFIX
        return {prefix + name: value for name, value in _open_clip(bare).items()}
    prefix = SD1_TEXT_PREFIX if family == "sd1" else SDXL_CLIP_PREFIX
    return {f"{prefix}text_model.{key}": value for key, value in bare.items()}


def _open_clip(bare: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights as OpenCLIP has them: query, key and value in one matrix, the projection transposed."""
    found: dict[str, Tensor] = {}
    for key, value in bare.items():
        name = open_clip_name(key)
        if name == "text_projection":
            value = value.T.contiguous()
        elif ".attn.in_proj_" in name:
            part = key.split(".")[-2]
            value = torch.cat([bare[key.replace(part, f"{letter}_proj")] for letter in "qkv"])
        found[name] = value
    return found


def folder_state(path: Path, model: StableDiffusionModel, family: str) -> dict[str, Tensor]:
    """The weights of the folder that `model` was loaded from, by LDM's names. Raises DreamBoothError."""
    try:
        found = read(path)
        unet, vae = part_state(found, "unet"), part_state(found, "vae")
        texts = [part_state(found, name) for name in TEXT_PARTS if name in found.parts]
    except UserError as error:
        raise DreamBoothError(f"The base model cannot be read: {error}") from error
    parts: Any = model
    state = {
        **_named(ldm_unet, parts.model.diffusion_model, unet),
        **_named(ldm_vae, parts.first_stage_model, vae),
    }
    for number, text in enumerate(texts):
        state.update(file_text(text, family, number))
    if family == "sd2":
        state.update(_last_layer(state, len(_layers(state))))
    return state


def _named(rename: Callable[[Any], dict[str, Tensor]], part: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `rename` makes of the folder's weights rather than of those of the module, which were trained."""
    wanted = {key: state[key] for key in part.state_dict()}
    return rename(SimpleNamespace(config=part.config, state_dict=lambda: wanted))


def _layers(state: Mapping[str, Tensor]) -> set[str]:
    root = f"{SD2_TEXT_PREFIX}transformer.resblocks."
    return {key[len(root) :].split(".")[0] for key in state if key.startswith(root)}


def _last_layer(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """SD2's files have one layer more, which conditions nothing and which readers count on; here it does nothing."""
    root = f"{SD2_TEXT_PREFIX}transformer.resblocks."
    last = {key: value for key, value in state.items() if key.startswith(f"{root}{count - 1}.")}
    return {
        key.replace(f"{root}{count - 1}.", f"{root}{count}."): torch.ones_like(value)
        if ".ln_" in key and key.endswith("weight")
        else torch.zeros_like(value)
        for key, value in last.items()
    }
