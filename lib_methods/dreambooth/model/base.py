"""A base model by the headers of its files: whether it can be trained, and its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lib_methods.checkpoints.kinds import EMA_PREFIX
from lib_methods.checkpoints.layout import Shapes, unet_shapes
from lib_methods.checkpoints.ldm_names import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
)
from lib_methods.checkpoints.reader import TEXT_PARTS, Checkpoint, read_checkpoint
from lib_methods.checkpoints.schedule import NoiseSchedule
from lib_methods.errors import CheckpointError, UserError
from lib_methods.safetensors import TensorHead

_TEXT_PREFIXES = {
    "sd1": (SD1_TEXT_PREFIX,),
    "sd2": (SD2_TEXT_PREFIX,),
    "sdxl": (SDXL_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX),
}


@dataclass(frozen=True)
class ModelSizes:
    """What a checkpoint is made of, in numbers (not bytes).

    largest: of the UNet's tensors. factored: what Adafactor keeps of the UNet. lora, lora_convolutions, lora_text: of a
    LoRA of rank 1 on what `lora.places` names. text_width: hidden size times layers of the text encoders. words: what
    it is called, where the family does not say it. cell_bytes: `plan.CELL_BYTES` of a model that is in no table.
    """

    family: str
    resolution: int
    pixels_per_latent: int
    unet: int
    text: int
    largest: int
    factored: int
    lora: int
    lora_convolutions: int
    lora_text: int
    text_width: int
    words: str = ""
    cell_bytes: Callable[[str, int], float] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(
        family: str,
        unet: Shapes,
        texts: Sequence[Shapes],
        resolution: int,
        pixels_per_latent: int = 8,
        words: str = "",
        cell_bytes: Callable[[str, int], float] | None = None,
    ) -> ModelSizes:
        """Counted from the shapes of the weights, by diffusers' and transformers' names."""
        layers = {name: shape for name, shape in unet.items() if len(shape) > 1}
        text = [(name, shape) for shapes in texts for name, shape in shapes.items()]
        blocks = ("down_blocks.", "mid_block.", "up_blocks.")
        return ModelSizes(
            family=family,
            resolution=resolution,
            pixels_per_latent=pixels_per_latent,
            unet=sum(map(math.prod, unet.values())),
            text=sum(math.prod(shape) for _, shape in text),
            largest=max(map(math.prod, unet.values())),
            factored=sum(_rank_one(shape) if len(shape) > 1 else shape[0] for shape in unet.values()),
            lora=sum(_rank_one(shape) for name, shape in layers.items() if ".attentions." in name),
            lora_convolutions=sum(
                _rank_one(shape)
                for name, shape in layers.items()
                if name.startswith(blocks) and ".attentions." not in name
            ),
            lora_text=sum(_rank_one(shape) for name, shape in text if name.startswith("encoder.") and len(shape) > 1),
            text_width=sum(shape[0] for name, shape in text if name.endswith("layer_norm1.weight")),
            words=words,
            cell_bytes=cell_bytes,
        )


def _rank_one(shape: tuple[int, ...]) -> int:
    """The numbers of a LoRA of rank 1 on a layer: an input row and an output column."""
    return shape[0] + math.prod(shape[1:])


@dataclass(frozen=True)
class Part:
    """What a full training run may change in a checkpoint's file: numbers, and bytes as the file has them."""

    count: int
    size: int


@dataclass(frozen=True)
class BaseModel:
    """unet, text: with moving averages. unet_shapes: by diffusers' names. size: bytes of all tensors.

    schedule: its prediction is "unknown" where only the loaded model can tell, and the resolution is a guess.
    """

    sizes: ModelSizes
    unet: Part
    text: Part
    size: int
    unet_shapes: Shapes = field(repr=False)
    schedule: NoiseSchedule = NoiseSchedule()

    @property
    def guessed(self) -> bool:
        """Whether the resolution is a guess."""
        return self.schedule.prediction == "unknown"


def prediction_told(prediction: str, zero_terminal_snr: bool) -> tuple[str, ...]:
    """A sentence for the plan about a base model that predicts otherwise than Stable Diffusion 1."""
    kinds = ["v-prediction"] * (prediction == "v") + ["zero terminal SNR"] * zero_terminal_snr
    if not kinds:
        return ()
    return (f"The base model uses {' and '.join(kinds)}. It is trained the same way, and the result's file says so.",)


def checked_base(path: Path) -> Checkpoint:
    """The base model at `path`, for the plan and the training alike.

    Raises UserError for what cannot be read, for a UNet that takes more than latents, and where the result could
    not say what it is.
    """
    if not path.exists():
        raise UserError(f"There is no base model {path.name}. Choose a checkpoint file or a diffusers folder.")
    try:
        base = read_checkpoint(path)
    except CheckpointError as problem:
        raise UserError(f"The base model cannot be used: {problem}") from problem
    if base.is_folder and not base.schedule.is_usual:
        raise UserError(
            f"The base model {base.path.name} was trained with an unusual noise schedule, which a checkpoint "
            "or LoRA cannot record. DreamBooth trains models with Stable Diffusion's usual one."
        )
    if base.unet.get("time_cond_proj_dim"):
        raise UserError(
            f"The base model {base.path.name} is a distilled one (a latent consistency model), which cannot be "
            "trained: choose the one it was made from."
        )
    channels = int(base.unet["in_channels"])
    if channels != int(base.vae["latent_channels"]):
        kind = {8: "an InstructPix2Pix", 9: "an inpainting"}.get(channels, "a special")
        raise UserError(
            f"The base model {base.path.name} is {kind} checkpoint ({channels} input channels). DreamBooth trains "
            "plain text-to-image checkpoints: choose the one it was made from."
        )
    return base


def read_base(path: Path) -> BaseModel:
    """The base model at `path`, a .safetensors file or a diffusers folder. Read again only where a file has changed.

    Raises UserError, which names the file and no folder: it cannot be read, or cannot be trained.
    """
    path = Path(path)
    inside = (*path.glob("*.json"), *path.glob("*/*"))
    files = sorted(inside) if path.is_dir() else [path, path.with_suffix(".yaml")]
    marks = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists()]
    return _read(path, tuple(marks))


@lru_cache(maxsize=32)
def _read(path: Path, marks: tuple[tuple[str, int, int], ...]) -> BaseModel:
    found = checked_base(path)
    shapes = unet_shapes(found.unet)
    unet, text = _folder_parts(found) if found.is_folder else _file_parts(found.parts[""].heads, found.family)
    return BaseModel(
        sizes=ModelSizes.of(found.family, shapes, found.text_shapes, found.resolution(), found.pixels_per_latent),
        unet=_part(unet),
        text=_part(text),
        size=sum(head.size for part in found.parts.values() for head in part.heads.values()),
        unet_shapes=shapes,
        schedule=found.schedule,
    )


def _file_parts(heads: Mapping[str, TensorHead], family: str) -> tuple[list[TensorHead], list[TensorHead]]:
    unet = [head for key, head in heads.items() if key.startswith(UNET_PREFIX)]
    unet += [head for key, head in heads.items() if key.startswith(EMA_PREFIX) and head.shape]
    prefixes = _TEXT_PREFIXES[family]
    return unet, [head for key, head in heads.items() if key.startswith(prefixes) and "position_ids" not in key]


def _folder_parts(found: Checkpoint) -> tuple[list[TensorHead], list[TensorHead]]:
    texts = [found.parts[name].heads for name in TEXT_PARTS if name in found.parts]
    text = [head for heads in texts for key, head in heads.items() if "position_ids" not in key]
    return list(found.parts["unet"].heads.values()), text


def _part(heads: Iterable[TensorHead]) -> Part:
    listed = list(heads)
    return Part(sum(head.count for head in listed), sum(head.size for head in listed))
