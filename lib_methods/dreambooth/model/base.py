"""What a base model is made of, read from its files' headers: no weight is loaded, and no diffusers is needed.

The numbers are those that `ModelSizes.of` counts from the modules of the loaded model. The keys are LDM's and SGM's, as
single files have them, or diffusers' and transformers', as in folders.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib_methods.checkpoints.kinds import EMA_PREFIX
from lib_methods.checkpoints.reader import TEXT_PARTS, Checkpoint, read_checkpoint
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.model.base_text import TextSizes, rank_one, text_sizes
from lib_methods.dreambooth.model.memory import ModelSizes
from lib_methods.dreambooth.model.operations import Work, count_work
from lib_methods.ldm_checkpoint import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
)
from lib_methods.safetensors_header import FileProblem, TensorHead


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Passes on why a checkpoint cannot be read as a DreamBoothError."""
    try:
        yield
    except FileProblem as problem:
        raise DreamBoothError(f"The base model cannot be used: {problem}") from problem


def checked_base(path: Path) -> Checkpoint:
    """The base model at `path`, for the plan and the training alike.

    Raises DreamBoothError for what cannot be read, for a UNet that takes more than latents, and where the result could
    not say what it is.
    """
    if not path.exists():
        raise DreamBoothError(f"The base model {path.name} is not there; choose a checkpoint file or a folder.")
    with refusals():
        base = read_checkpoint(path)
    _check(base)
    return base


def _check(base: Checkpoint) -> None:
    if base.is_folder and not base.schedule.is_usual:
        raise DreamBoothError(
            f"The base model {base.path.name} was trained with a noise schedule of its own, which no checkpoint file "
            "or LoRA can tell other programs. DreamBooth trains models with Stable Diffusion's usual one."
        )
    if base.unet.get("time_cond_proj_dim"):
        raise DreamBoothError(
            f"The base model {base.path.name} is a distilled one (a latent consistency model), which cannot be "
            "trained: choose the one that it was made from."
        )
    channels = int(base.unet["in_channels"])
    if channels == int(base.vae["latent_channels"]):
        return
    kind = {8: "an InstructPix2Pix", 9: "an inpainting"}.get(channels, "a special")
    raise DreamBoothError(
        f"The base model {base.path.name} is {kind} checkpoint ({channels} input channels). DreamBooth trains plain "
        "text-to-image checkpoints: choose the one that it was made from."
    )


_TEXT_PREFIXES = {
    "sd1": (SD1_TEXT_PREFIX,),
    "sd2": (SD2_TEXT_PREFIX,),
    "sdxl": (SDXL_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX),
}
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


def read_base(path: Path) -> BaseModel:
    """The base model at `path`, a .safetensors file or a diffusers folder. Read again only where a file has changed.

    Raises DreamBoothError, which names the file and no folder: it cannot be read, or cannot be trained.
    """
    path = Path(path)
    inside = (*path.glob("*.json"), *path.glob("*/*"))
    files = sorted(inside) if path.is_dir() else [path, path.with_suffix(".yaml")]
    return _read(path, tuple(_mark(file) for file in files))


def _mark(file: Path) -> tuple[str, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return file.name, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=32)
def _read(path: Path, marks: tuple[tuple[str, int, int] | None, ...]) -> BaseModel:
    found = checked_base(path)
    return _folder(found) if found.is_folder else _file(found)


def _file(found: Checkpoint) -> BaseModel:
    heads, family = found.parts[""].heads, found.family
    unet, prefixes = _below(heads, UNET_PREFIX), _TEXT_PREFIXES[family]
    shapes = [{key: head.shape for key, head in _below(heads, prefix).items()} for prefix in prefixes]
    averages = [head for key, head in heads.items() if key.startswith(EMA_PREFIX) and head.shape]
    return _base(
        found,
        unet,
        [text_sizes(text, projected=n == 1, without_last=family == "sd2") for n, text in enumerate(shapes)],
        _part([*unet.values(), *averages]),
        _part(head for key, head in heads.items() if key.startswith(prefixes) and "position_ids" not in key),
        sum(head.size for head in heads.values()),
    )


def _folder(found: Checkpoint) -> BaseModel:
    unet, vae = found.parts["unet"].heads, found.parts["vae"].heads
    files = [found.parts[name].heads for name in TEXT_PARTS if name in found.parts]
    shapes = [{key: head.shape for key, head in file.items()} for file in files]
    texts = [text_sizes(text, projected=number == 1) for number, text in enumerate(shapes)]
    text = _part(head for file in files for key, head in file.items() if "position_ids" not in key)
    size = sum(head.size for part in (unet, vae, *files) for head in part.values())
    if found.family == "sd2":  # a single file has one layer more, which conditions nothing
        inside = sum(head.size for key, head in files[0].items() if ".layers." in key)
        size += inside // max(1, texts[0].layers)
    return _base(found, unet, texts, _part(unet.values()), text, size)


def _base(
    found: Checkpoint,
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
    sizes = ModelSizes(
        family=found.family,
        resolution=found.resolution(),
        pixels_per_latent=found.pixels_per_latent,
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
        guessed=found.schedule.prediction == "unknown",
    )


def _below(heads: Heads, prefix: str) -> dict[str, TensorHead]:
    return {key[len(prefix) :]: head for key, head in heads.items() if key.startswith(prefix)}


def _part(heads: Iterable[TensorHead]) -> Part:
    listed = list(heads)
    return Part(sum(head.count for head in listed), sum(head.size for head in listed))
