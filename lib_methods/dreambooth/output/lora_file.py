"""Writes a trained LoRA as the WebUI and others read it: kohya's names, the true alpha, `ss_*` metadata; reads one."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_methods.checkpoints.ldm_names import UNET_PREFIX
from lib_methods.dreambooth.model.lora import LoraSet, Place, StartLayer, all_places
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.errors import CheckpointError, UserError, reason
from lib_methods.safetensors import NotFinite, read_header, read_tensors, rounded, write_tensors

_USUAL_LAYERS = 2
_PARTS = {
    **dict.fromkeys(("lora_down.weight", "lora.down.weight", "lora_A.weight", "lora_A.default.weight"), "down"),
    **dict.fromkeys(("lora_up.weight", "lora.up.weight", "lora_B.weight", "lora_B.default.weight"), "up"),
    "alpha": "alpha",
}
_LORA_KEY = re.compile(rf"(?:base_model\.model\.)?(?P<layer>.+?)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}


def kohya_names(places: Sequence[Place], model: TrainingModel) -> list[str]:
    """The names of layers in the file.

    kohya's programs name the layers of SD1's and SD2's UNets as diffusers does and those of SDXL's as LDM does. The
    WebUI turns the former into the latter counting on two residual blocks a level, so a UNet of another build gets
    LDM's names whatever its family.
    """
    layers = getattr(getattr(model.unet, "config", None), "layers_per_block", None)
    of_diffusers = model.family != "sdxl" and layers == _USUAL_LAYERS
    ldm = {} if of_diffusers else model.unet_names()  # once: it goes through the whole UNet
    several = len(model.encoders) > 1

    def name(place: Place) -> str:
        if place.part == "text":
            return f"lora_te{place.number + 1 if several else ''}_text_model_{_flat(place.name)}"
        if of_diffusers:
            return f"lora_unet_{_flat(place.name)}"
        found = ldm[f"{place.name}.weight"].removeprefix(UNET_PREFIX).removesuffix(".weight")
        return f"lora_unet_{_flat(found)}"

    return [name(place) for place in places]


def _flat(name: str) -> str:
    return name.replace(".", "_")


def lora_tensors(lora: LoraSet, model: TrainingModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU. Raises UserError for weights that are not finite in `dtype`."""
    alphas: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for place, name in zip(lora.places, kohya_names(lora.places, model)):
        layer = lora.layer(place)
        alphas[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
        for part, weight in (("lora_down", layer.down), ("lora_up", layer.up)):
            key = f"{name}.{part}.weight"
            try:
                weights[key] = rounded(key, weight, dtype)
            except NotFinite as problem:
                raise UserError(f"The LoRA cannot be saved: {problem}") from problem
    return {**alphas, **weights}


def save_lora(
    path: Path,
    lora: LoraSet,
    model: TrainingModel,
    settings: TrainingSettings,
    extra_metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes the LoRA to `path`, whole or not at all. extra_metadata is added and wins.

    Raises UserError when the disk is full or cannot be written; what was there before is then still there.
    """
    tensors = lora_tensors(lora, model, dtype)
    metadata = {**lora_metadata(lora, model, settings, path.stem), **(extra_metadata or {})}
    digest = hashlib.sha256()  # kohya's: of the file behind its header, which has the widest numbers first
    for tensor in sorted(tensors.values(), key=lambda tensor: -tensor.dtype.itemsize):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    metadata["sshs_model_hash"] = digest.hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, metadata)
    except OSError as error:
        raise UserError(f"{path.name} cannot be written. {reason(error)}") from error


def lora_metadata(lora: LoraSet, model: TrainingModel, settings: TrainingSettings, name: str) -> dict[str, str]:
    """What the file says about itself, in the words of kohya's sd-scripts; how it was trained is `facts_of`'s."""
    side = settings.resolution or model.resolution
    version = _VERSIONS[model.family]
    if model.parameterization == "v" and model.family != "sdxl":
        version += "_v"
    architecture = _ARCHITECTURES[model.family]
    if model.family == "sd2" and model.parameterization == "v":
        architecture = "stable-diffusion-v2-768-v"
    told: dict[str, Any] = {
        "ss_output_name": name,
        "ss_base_model_version": version,
        "ss_v2": model.family == "sd2",
        "ss_sd_model_name": model.name,
        "ss_sd_model_hash": model.sha256[:10],
        "ss_new_sd_model_hash": model.sha256,
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common([lora.layer(place).down.shape[0] for place in lora.places]),
        "ss_network_alpha": _common([lora.layer(place).alpha for place in lora.places]),
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": settings.buckets,
        "ss_clip_skip": None,
        "ss_max_grad_norm": settings.clip_gradients,
        "ss_noise_offset": settings.noise_offset or None,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_v_parameterization": model.parameterization == "v",
        "ss_zero_terminal_snr": model.zero_terminal_snr,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.title": name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if model.parameterization == "v" else "epsilon",
        "modelspec.trigger_phrase": settings.subjects,
    }
    if lora.convolutions:
        told["ss_network_args"] = json.dumps({"conv_dim": str(lora.rank), "conv_alpha": str(lora.alpha)})
    return {key: str(value) for key, value in told.items()}


def tag_frequency(captions: Mapping[str, Sequence[str]]) -> str:
    """How often each caption's parts between commas stand in the captions of each folder: `ss_tag_frequency`, JSON."""
    folders: dict[str, dict[str, int]] = {}
    for folder, texts in captions.items():
        counts = folders.setdefault(folder, {})
        for tag in (part.strip() for text in texts for part in text.split(",")):
            if tag:
                counts[tag] = counts.get(tag, 0) + 1
    return json.dumps(folders, ensure_ascii=False)


def _common(values: Sequence[float]) -> object:
    """The value that all have, else "Dynamic", as kohya's programs write it."""
    return values[0] if len(set(values)) == 1 else "Dynamic"


@dataclass(frozen=True)
class LoraStart:
    """A LoRA to continue from. layers: by their place's key, see `LoraSet`. sha256: of the file."""

    layers: Mapping[str, StartLayer]
    sha256: str

    def shaping(self, settings: TrainingSettings) -> TrainingSettings:
        """The settings with the rank and the alpha that most of its layers have."""
        rank, alpha = Counter((layer.rank, layer.alpha) for layer in self.layers.values()).most_common(1)[0][0]
        return replace(settings, rank=rank, alpha=alpha)


def read_lora(path: Path, model: TrainingModel) -> LoraStart:
    """The LoRA in a file of kohya's, diffusers' or PEFT's names, for `model`.

    Raises UserError: the file cannot be read, is no plain LoRA, or is for another model.
    """
    try:
        read_header(path)  # which tells a download that failed from a pickle
    except CheckpointError as problem:
        raise UserError(f"The LoRA cannot be continued: {problem}") from problem
    tensors, _ = read_tensors(path)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _LORA_KEY.fullmatch(key)
        if found is None:
            raise UserError(
                f"{path.name} is not a plain LoRA (it has {key}). Only LoRAs with up and down weights can be continued."
            )
        by_name.setdefault(_flat(found["layer"]), {})[_PARTS[found["part"]]] = tensor.float()
    known = _known_names(model)
    layers: dict[str, StartLayer] = {}
    for name, parts in by_name.items():
        place = known.get(name)
        layer = None if place is None else _start_layer(parts, place)
        if place is None or layer is None:
            raise UserError(
                f"{path.name} cannot be continued on {model.name}: its layer {name} does not fit. It may be for "
                "another base model."
            )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (layer.down, layer.up)):
            raise UserError(f"{path.name} is damaged: it has weights that are NaN or infinite.")
        layers[place.key] = layer
    if not layers:
        raise UserError(f"{path.name} is not a LoRA: it has no layers.")
    return LoraStart(layers, hashlib.sha256(path.read_bytes()).hexdigest())


def _known_names(model: TrainingModel) -> dict[str, Place]:
    """All layers by the names that kohya's programs, diffusers and PEFT write, flattened."""
    names: dict[str, Place] = {}
    ldm = model.unet_names()
    for place in all_places(model):
        flat = _flat(place.name)
        if place.part == "unet":
            names[f"lora_unet_{flat}"] = names[f"unet_{flat}"] = place
            of_file = ldm.get(f"{place.name}.weight", "").removeprefix(UNET_PREFIX).removesuffix(".weight")
            names.setdefault(f"lora_unet_{_flat(of_file)}", place)
        else:
            number = place.number + 1
            starts = [f"lora_te{number}", f"text_encoder_{number}" if place.number else "text_encoder"]
            starts += [] if place.number else ["lora_te"]
            names.update({f"{start}_text_model_{flat}": place for start in starts})
    return names


def _start_layer(parts: Mapping[str, Tensor], place: Place) -> StartLayer | None:
    """None where shapes do not fit the layer."""
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None or down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
        return None
    outputs, *inside = place.base.weight.shape
    rank = down.shape[0]
    if down.numel() != rank * math.prod(inside) or up.numel() != rank * outputs:
        return None
    ones = (1,) * (len(inside) - 1)
    alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)
    return StartLayer(down.reshape(rank, *inside).contiguous(), up.reshape(outputs, rank, *ones).contiguous(), alpha)
