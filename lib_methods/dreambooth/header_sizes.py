"""What a base model is made of, read from its files' headers: no weight is loaded, and no diffusers is needed.

The numbers are those that `ModelSizes.of` counts from the modules of the loaded model. The keys are LDM's and SGM's, as
single files have them, or diffusers' and transformers', as in folders.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib_methods.dreambooth.base_rules import check_input, resolution_of
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.header_text import TextSizes, rank_one, text_sizes
from lib_methods.dreambooth.operations import Work, count_work
from lib_methods.dreambooth.safetensors_header import TensorHead, read_header
from lib_methods.dreambooth.sizes import ModelSizes
from lib_methods.ldm_checkpoint import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    CheckpointProblem,
    family_of,
    read_yaml,
)

EMA = "model_ema."
_TEXT_PREFIXES = {
    "sd1": (SD1_TEXT_PREFIX,),
    "sd2": (SD2_TEXT_PREFIX,),
    "sdxl": (SDXL_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX),
}
_VAE_LEVEL = re.compile(re.escape(VAE_PREFIX) + r"decoder\.up\.(\d+)\.")
_TRANSFORMER = re.compile(r".+\.(proj_in|proj_out)\.weight|.*\.transformer_blocks\..*")
_BLOCKS = re.compile(r"(input_blocks\.(?!0\.)|middle_block\.|output_blocks\.|down_blocks\.|mid_block\.|up_blocks\.)")

Heads = Mapping[str, TensorHead]


@dataclass(frozen=True)
class Part:
    """What of a checkpoint's file a training may move: numbers, and bytes as the file has them."""

    count: int
    size: int


@dataclass(frozen=True)
class BaseModel:
    """A base model as far as its files' headers tell.

    lora, lora_convolutions, lora_text: the numbers of a rank of a LoRA's file, on what `lora.places` names. unet, text:
    what a full training may move, moving averages included. size: bytes of all tensors of one file with this model.
    guessed: whether the resolution is a guess, as only the loaded model could tell.
    """

    sizes: ModelSizes
    work: Work
    lora: int
    lora_convolutions: int
    lora_text: int
    unet: Part
    text: Part
    size: int
    guessed: bool = False


@dataclass(frozen=True)
class _Facts:
    """What weights do not count. guessed: as `BaseModel` has it."""

    family: str
    resolution: int
    pixels_per_latent: int
    guessed: bool


def read_base(path: Path) -> BaseModel:
    """The base model at `path`, a .safetensors file or a diffusers folder. Read again only where a file has changed.

    Raises DreamBoothError, which names the file and no folder: it cannot be read, or cannot be trained.
    """
    path = Path(path)
    files = [path, path.with_suffix(".yaml")] if not path.is_dir() else sorted(path.glob("*/*"))
    return _read(path, tuple(_mark(file) for file in files))


def _mark(file: Path) -> tuple[str, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return file.name, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=32)
def _read(path: Path, marks: tuple[tuple[str, int, int] | None, ...]) -> BaseModel:
    return _folder(path) if path.is_dir() else _file(path)


# -- single files


def _file(path: Path) -> BaseModel:
    heads = read_header(path)
    try:
        family, config = family_of(heads), read_yaml(path)
    except CheckpointProblem as problem:
        raise DreamBoothError(f"The base model cannot be used: {problem}") from problem
    unet = _below(heads, UNET_PREFIX)
    _check_input(path.name, unet.get("input_blocks.0.0.weight"), heads.get(VAE_PREFIX + "decoder.conv_in.weight"))
    if family != "sdxl" and "label_emb.0.0.weight" in unet:
        raise DreamBoothError(f"The base model {path.name} is conditioned on image embeddings (unCLIP).")
    levels = {found[1] for key in heads if (found := _VAE_LEVEL.match(key))}
    pixels_per_latent = 2 ** max(0, len(levels) - 1)
    prefixes = _TEXT_PREFIXES[family]
    shapes = [{key: head.shape for key, head in _below(heads, prefix).items()} for prefix in prefixes]
    texts = [text_sizes(text, projected=n == 1, without_last=family == "sd2") for n, text in enumerate(shapes)]
    resolution, guessed = _resolution(family, heads, config, pixels_per_latent)
    averages = [head for key, head in heads.items() if key.startswith(EMA) and head.shape]
    return _base(
        _Facts(family, resolution, pixels_per_latent, guessed),
        unet,
        texts,
        _part([*unet.values(), *averages]),
        _part(head for key, head in heads.items() if key.startswith(prefixes) and "position_ids" not in key),
        sum(head.size for head in heads.values()),
    )


def _resolution(
    family: str, heads: Heads, config: Mapping[str, Any] | None, pixels_per_latent: int
) -> tuple[int, bool]:
    """The side in pixels, and whether it is a guess: an SD2 file alone does not tell whether it predicts v."""
    try:
        params = ((config or {}).get("model") or {}).get("params") or {}
        size = params.get("image_size")
        predicts_v = "v_pred" in heads or params.get("parameterization") == "v"
    except AttributeError:
        raise DreamBoothError("The yaml beside the base model has no model.params section as LDM writes it.") from None
    guessed = family == "sd2" and config is None and not predicts_v
    return resolution_of(family, predicts_v or guessed, size, pixels_per_latent), guessed


# -- diffusers folders


def _folder(path: Path) -> BaseModel:
    config = _json(path, "unet/config.json")
    unet = _weights(path, "unet", "diffusion_pytorch_model")
    vae = _weights(path, "vae", "diffusion_pytorch_model")
    _check_input(path.name, unet.get("conv_in.weight"), vae.get("decoder.conv_in.weight"))
    names = ["text_encoder", "text_encoder_2"] if (path / "text_encoder_2").is_dir() else ["text_encoder"]
    files = [_weights(path, name, "model") for name in names]
    family = "sd2" if _json(path, "text_encoder/config.json").get("hidden_act") == "gelu" else "sd1"
    family = "sdxl" if len(names) > 1 else family
    try:
        pixels_per_latent = 2 ** (len(_json(path, "vae/config.json")["block_out_channels"]) - 1)
        resolution = int(config["sample_size"]) * pixels_per_latent
    except (KeyError, TypeError, ValueError):
        raise DreamBoothError(f"The configuration in the folder {path.name} does not say the model's sizes.") from None
    shapes = [{key: head.shape for key, head in file.items()} for file in files]
    texts = [text_sizes(text, projected=number == 1) for number, text in enumerate(shapes)]
    text = _part(head for file in files for key, head in file.items() if "position_ids" not in key)
    size = sum(head.size for part in (unet, vae, *files) for head in part.values())
    if family == "sd2":  # a single file has one layer more, which conditions nothing
        inside = sum(head.size for key, head in files[0].items() if ".layers." in key)
        size += inside // max(1, texts[0].layers)
    facts = _Facts(family, resolution, pixels_per_latent, False)
    return _base(facts, unet, texts, _part(unet.values()), text, size)


def _weights(path: Path, part: str, stem: str) -> dict[str, TensorHead]:
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (path / part / name).is_file():
            return read_header(path / part / name, f"{path.name}/{part}")
    raise DreamBoothError(f"The folder {path.name} has no weights in {part}/ that can be read ({stem}.safetensors).")


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        parsed = None
    if not isinstance(parsed, dict):
        raise DreamBoothError(f"The folder {path.name} is no diffusers checkpoint: it has no readable {name}.")
    return parsed


# -- both


def _base(
    facts: _Facts,
    unet: Heads,
    texts: Sequence[TextSizes],
    unet_part: Part,
    text_part: Part,
    size: int,
) -> BaseModel:
    shapes = {key: head.shape for key, head in unet.items()}
    layers = {key: shape for key, shape in shapes.items() if len(shape) > 1}
    inside = {key: shape for key, shape in layers.items() if _TRANSFORMER.fullmatch(key)}
    between = [shape for key, shape in layers.items() if key not in inside and _BLOCKS.match(key)]
    if not inside or not all(text.layers for text in texts):
        raise DreamBoothError("The base model is not complete: weights of its UNet or its text encoder are missing.")
    sizes = ModelSizes(
        family=facts.family,
        resolution=facts.resolution,
        pixels_per_latent=facts.pixels_per_latent,
        unet=sum(head.count for head in unet.values()),
        text=sum(text.count for text in texts),
        largest=max(head.count for head in unet.values()),
        factored=sum(rank_one([shape]) if len(shape) > 1 else math.prod(shape) for shape in shapes.values()),
        lora=rank_one(shape for shape in inside.values() if len(shape) == 2),
        lora_convolutions=rank_one(shape for shape in layers.values() if len(shape) == 4),
        lora_text=sum(text.lora + text.lora_outside for text in texts),
        text_width=sum(text.norms for text in texts) // 2,  # two norms a layer
    )
    return BaseModel(
        sizes=sizes,
        work=count_work(shapes),
        lora=rank_one(inside.values()),
        lora_convolutions=rank_one(between),
        lora_text=sum(text.lora for text in texts),
        unet=unet_part,
        text=text_part,
        size=size,
        guessed=facts.guessed,
    )


def _check_input(name: str, first: TensorHead | None, decoder: TensorHead | None) -> None:
    """Raises DreamBoothError for a UNet that takes more than latents."""
    if decoder is None or len(decoder.shape) != 4:
        raise DreamBoothError(f"The base model {name} has no VAE in it; use one with the VAE included.")
    if first is None or len(first.shape) != 4:
        raise DreamBoothError(f"The base model {name} is not complete: its UNet has no first layer.")
    check_input(name, first.shape[1], decoder.shape[1])


def _below(heads: Heads, prefix: str) -> dict[str, TensorHead]:
    return {key[len(prefix) :]: head for key, head in heads.items() if key.startswith(prefix)}


def _part(heads: Iterable[TensorHead]) -> Part:
    listed = list(heads)
    return Part(sum(head.count for head in listed), sum(head.size for head in listed))
