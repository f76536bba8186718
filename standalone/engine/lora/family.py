"""A LoRA's model family, and files that are not LoRAs: refused as a whole, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lib_methods.errors import UserError

from ..model import StableDiffusionModel

FAMILIES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
_TOLD = (  # by how ss_base_model_version and modelspec.architecture begin, in lower case without punctuation
    (r"(sd|stablediffusion)(v?1)", "SD1"),
    (r"(sd|stablediffusion)(v?2)", "SD2"),
    (r"(sd|stablediffusion)xl", "SDXL"),
    (r"(sd|stablediffusion)(v?3)", "Stable Diffusion 3"),
    (r"stablecascade", "Stable Cascade"),
    (r"flux2", "Flux.2"),
    (r"flux|chroma", "Flux"),
    (r"hunyuan", "Hunyuan"),
    (r"wan(\d|x|video)", "Wan video"),
    (r"qwen", "Qwen-Image"),
    (r"lumina|zimage", "Lumina or Z-Image"),
    (r"auraflow", "AuraFlow"),
    (r"pixart", "PixArt"),
    (r"ltx", "LTX-Video"),
    (r"kolors", "Kolors"),
    (r"anima\b|cosmos", "Cosmos"),
)
_BY_NAME = (  # by parts of the layers' names, with underscores for dots
    (r"(double|single)_blocks_\d|single_transformer_blocks_\d", "Flux"),
    (r"joint_blocks_\d|^(lora_)?te3_|^text_encoder_3_", "Stable Diffusion 3"),
    (r"^lora_prior_", "Stable Cascade"),
    (r"motion_modules?_", "AnimateDiff"),
    (r"transformer_blocks_\d+_(img|txt)_m", "Qwen-Image"),
    (r"^(lora_unet|diffusion_model|transformer)_(blocks|layers)_\d", "a video model or a diffusion transformer"),
    (r"^(lora_)?transformer_", "a diffusion transformer (Flux, Stable Diffusion 3 or similar)"),
)
_NO_LORA = (  # by any tensor's name in a file without a LoRA's parts
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
     "is a checkpoint, not a LoRA. Put it into models/Stable-diffusion and choose it as the checkpoint"),
    (r"^(emb_params|string_to_param|string_to_token|clip_[lg]|\*|<.*>)(\.|$)",
     "is a textual inversion embedding, not a LoRA; embedding files cannot be used here"),
    (r"^(control_model|controlnet_\w+|input_hint_block|zero_convs|controlnet)\b", "is a ControlNet, not a LoRA"),
    (r"^(ip_adapter|image_proj)\.", "is an IP-Adapter, not a LoRA"),
    (r"^(encoder|decoder|vae)\.", "is a VAE, not a LoRA"),
    (r"^(input_blocks|down_blocks|unet|diffusion_model|text_model|double_blocks|joint_blocks|transformer_blocks)\b",
     "is a model or a part of one, not a LoRA"),
)  # fmt: skip
_LORA_PART = re.compile(
    r"^(lora|oft|lycoris)_[a-z]+\d?_|^bundle_emb\.|[._]lora[._]|[._]lora_|\.(hada|lokr|oft|ia3|boft)_\w+"
    r"|\.(alpha|diff|diff_b|w_norm|b_norm|dora_scale|on_input)$|\.[ab][12]\.weight$"
)


def check_lora(name: str, keys: Iterable[str]) -> None:
    """Raises UserError for a file of another kind, by what it is."""
    known = list(keys)
    if any(map(_LORA_PART.search, known)):
        return
    for pattern, what in _NO_LORA:
        if any(map(re.compile(pattern).search, known)):
            raise UserError(f"{name}.safetensors {what}.")
    raise UserError(f"{name}.safetensors holds no LoRA that we know: no tensor has the name of a LoRA's part.")


def check_family(model: StableDiffusionModel, metadata: Mapping[str, Any], layers: Iterable[str]) -> None:
    """Raises UserError where metadata or layer names tell that the file is for another family than the model's."""
    own = family_of(model)
    told = _told(metadata) or _named(layers) or own
    if told != own:
        raise another_family(model, told)


def another_family(model: StableDiffusionModel, told: str) -> UserError:
    """The error for a LoRA of another family; `told` is its name."""
    return UserError(
        f"it was made for {told}, and the checkpoint is of the {family_of(model)} family. Use it with a checkpoint of "
        "its own family."
    )


def family_of(model: StableDiffusionModel) -> str:
    return FAMILIES["sdxl" if model.is_sdxl else "sd2" if model.is_sd2 else "sd1"]


def _told(metadata: Mapping[str, Any]) -> str | None:
    for key in ("ss_base_model_version", "modelspec.architecture"):
        text = re.sub(r"[^a-z0-9/]", "", str(metadata.get(key) or "")[:200].lower())
        for pattern, family in _TOLD:
            if re.match(pattern, text):
                return family
    return "SD2" if str(metadata.get("ss_v2")).lower() == "true" else None


def _named(layers: Iterable[str]) -> str | None:
    names = [layer.replace(".", "_") for layer in layers]
    return next((what for pattern, what in _BY_NAME if any(map(re.compile(pattern).search, names))), None)
