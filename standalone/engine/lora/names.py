"""Tensor names in LoRA files: which layer of a model a tensor belongs to, and which part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from standalone.engine.weights import ldm_unet_names

from ..model import StableDiffusionModel

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
BUNDLE = "bundle_emb."
_KOHYA = re.compile(r"(lora|oft|lycoris)_[a-z]+\d?_[^.]*\.")
_PART = re.compile(  # with dots in the layer's name; kohya's has none
    r"\.(?:(?:processor\.)?to_(?:[qkv]|out)_lora\.(?:up|down)\.weight"
    r"|(?:lora|lora_linear_layer)\.(?:up|down)\.weight"
    r"|lora_(?:A|B|magnitude_vector|embedding_[AB])(?:\.[^.]+){0,2}|lora_(?:up|down|mid)\.weight"
    r"|(?:[ab][12]|bm)\.weight|(?:hada|lokr|oft|ia3|boft)_\w+(?:\.[^.]+)?|[^.]+)$"
)
_PROCESSOR = re.compile(r"(?:processor\.)?to_([qkv]|out)_lora\.(up|down)\.weight")
_ADAPTER = re.compile(r"(lora_[AB]|lora_magnitude_vector|ia3_l|(?:hada|lokr)_\w+)(\.(?!weight$)[^.]+)?(\.weight)?")
_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A": "down",  # PEFT's names of the same two
    "lora_B": "up",
    "lora.down.weight": "down",  # diffusers'
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_magnitude_vector": "magnitude",  # PEFT's name of dora_scale, always of the outputs
}
_TEXT = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_BARE_UNET = (
    "(?=(down|up|input|output)_blocks_|mid(dle)?_block_|conv_(in|out|norm_out)$|(time|add)_embedding_|time_embed_"
    r"|label_emb_|out_\d$)"
)
_ROOTS = tuple(
    (re.compile(pattern), root)
    for pattern, root in (
        (r"(lora|oft|lycoris)_unet_|(model_)?diffusion_model_|unet_|(lycoris_)?" + _BARE_UNET, "unet_"),
        (r"((lora|oft|lycoris)_)?te_", "te_"),
        (r"((lora|oft|lycoris)_)?te2_|text_encoder_2_|(text_encoders_)?clip_g_|conditioner_embedders_1_", "te2_"),
        (
            r"((lora|oft|lycoris)_)?te1_|text_encoder_(?!\d_)|(text_encoders_)?clip_[lh]_|cond_stage_model_"
            r"|conditioner_embedders_0_|(lycoris_)?(?=text_model_encoder_)",
            "te1_",
        ),
    )
)


def split_key(key: str) -> tuple[str, str]:
    """The layer's name as the file has it, and the part's as `kinds` has it."""
    key = key.removeprefix("base_model.model.")
    if _KOHYA.match(key):
        layer, _, part = key.partition(".")
    else:
        found = _PART.search(key)
        if found is None:
            return key, ""
        layer, part = key[: found.start()], found[0][1:]
    old = _PROCESSOR.fullmatch(part)
    if old is not None:
        unet = {"out": "to_out.0"}.get(old[1], f"to_{old[1]}")
        return f"{layer}.{_TEXT[old[1]] if 'self_attn' in layer else unet}", old[2]
    adapter = _ADAPTER.fullmatch(part)
    if adapter is not None:
        part = adapter[1]
    return layer, _PARTS.get(part, part)


def plain_name(layer: str) -> str:
    """One name for all that programs call a layer: `unet_`, `te_`, `te1_` or `te2_`, and its own with underscores."""
    flat = layer.replace(".", "_")
    for pattern, root in _ROOTS:
        found = pattern.match(flat)
        if found is not None:
            rest = flat[found.end() :]
            return root + (rest if root == "unet_" else re.sub(r"^(transformer_)?(text_model_)?", "", rest))
    return flat


def layers_by_name(model: StableDiffusionModel) -> dict[str, Layer]:
    """The layers of UNet and text encoders that a LoRA can change, by their plain names.

    For the UNet these are diffusers' (`unet_down_blocks_...`) and LDM's (`unet_input_blocks_...`), both in use; for
    text encoders `te_` or `te1_` with one of them, `te1_` and `te2_` with two.
    """
    unet = model.model.diffusion_model
    ldm = ldm_unet_names(unet)
    found: dict[str, Layer] = {}
    for name, layer in _layers(unet):
        for known in (name, ldm[f"{name}.weight"].removesuffix(".weight")):
            found["unet_" + known.replace(".", "_")] = layer
    for number, encoder in enumerate(model.text_encoders, 1):
        prefixes = [f"te{number}_"] if len(model.text_encoders) > 1 else ["te_", "te1_"]
        body = getattr(encoder, "body")  # noqa: B009 - ModuleList does not know the kind of its modules
        layers = dict(_layers(body))
        projection = getattr(getattr(encoder, "transformer"), "text_projection", None)  # noqa: B009
        if isinstance(projection, nn.Linear):
            layers["text_projection"] = projection
        for name, layer in layers.items():
            for prefix in prefixes:
                found[prefix + name.replace(".", "_")] = layer
    return found


def _layers(root: nn.Module) -> Iterator[tuple[str, Layer]]:
    for name, module in root.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
            yield name, module
