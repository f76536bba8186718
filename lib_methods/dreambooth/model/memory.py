"""How much memory training takes: counted from the weights, and from tables for what a pass through the UNet holds.

The tables are those of `python -m tests.dreambooth.count_memory`: the bytes that a pass (forward and backward, or
forward alone for images) holds at most beside the weights, for each cell of a latent and each row of the batch. They
grow in proportion to both, as attention is computed without its matrix (torch's `scaled_dot_product_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib_methods.checkpoints.layout import Shapes

GIB = 2**30
GPU_BLOCK = 2**22  # numbers that Adafactor moves together on a GPU
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.1, "prodigy": 16.0}  # for each number; 8-bit with its blocks' scales

# bytes a cell and row: computed in half precision throughout, under autocast with fp32 weights, in fp32;
# each plain and with checkpointing
_CELL = {
    "sd1": {"half": (232_500, 58_800), "mixed": (308_000, 55_400), "fp32": (464_500, 117_500)},
    "sdxl": {"half": (422_400, 43_500), "mixed": (532_600, 41_700), "fp32": (844_800, 87_000)},
}
# the same without gradients
_DENOISED_CELL = {
    "sd1": {"half": 16_700, "mixed": 17_400, "fp32": 33_400},
    "sdxl": {"half": 10_200, "mixed": 12_900, "fp32": 20_300},
}
_GUIDED_ROWS = 2  # of an image with guidance; where there is room, several are generated together
# the VAE, and an image's way out of it without gradients, in fp32: bytes, and bytes a cell; its way in takes less
_VAE, _DECODED_CELL = 4 * 83_653_863, 196_700
_LIBRARIES = int(0.5 * GIB)  # a CUDA context with the libraries' workspaces
_GAPS = 0.05  # what the allocator loses between tensors
_GATHERED = 0.15  # of sharded weights: two of the largest blocks of SD1.5's UNet, and what is in no block


@dataclass(frozen=True)
class ModelSizes:
    """What a checkpoint is made of, in numbers (not bytes).

    largest: of the UNet's tensors. factored: what Adafactor keeps of the UNet. lora, lora_convolutions, lora_text: of a
    LoRA of rank 1 on what `lora.places` names. text_width: hidden size times layers of the text encoders.
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

    @staticmethod
    def of(
        family: str, unet: Shapes, texts: Sequence[Shapes], resolution: int, pixels_per_latent: int = 8
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
        )


def _rank_one(shape: tuple[int, ...]) -> int:
    """The numbers of a LoRA of rank 1 on a layer: an input row and an output column."""
    return shape[0] + math.prod(shape[1:])


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device at the worst moment. overhead: the device's libraries, and gaps between tensors."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace + self.overhead

    def sentence(self) -> str:
        """The parts in GiB."""
        names = ("weights", "gradients", "optimizer", "activations", "workspace", "overhead")
        return ", ".join(f"{name} {getattr(self, name) / GIB:.1f}" for name in names) + " GiB"


@dataclass(frozen=True)
class Way:
    """One way to train: what weights are stored and computed in, and what saves memory at a price in time.

    weights: the UNet's; those of a LoRA are fp32 always. shards: over how many processes the UNet is sharded, 1 for not
    at all.
    """

    weights: str
    precision: str
    optimizer: str
    fused_backward: bool
    checkpointing: bool
    shards: int = 1


@dataclass(frozen=True)
class Load:
    """What is to be trained. rows: of one pass. side: of the image, in pixels. rank: of a LoRA, 0 for all weights."""

    rows: int
    side: int
    rank: int = 0
    convolutions: bool = False
    text: bool = False


def estimate(sizes: ModelSizes, load: Load, way: Way) -> Estimate:
    """The memory that `load` takes in this way."""
    width = BYTES[way.weights]
    text = sizes.text if load.text else 0
    unet = -(-sizes.unet // way.shards)
    text_width = _text_width(load, way)
    weights = unet * width + text * text_width
    if way.shards > 1:
        weights += int(_GATHERED * sizes.unet) * width
    if load.rank:
        lora = load.rank * (sizes.lora + (sizes.lora_convolutions if load.convolutions else 0))
        trained = lora + (load.rank * sizes.lora_text if load.text else 0)
        weights += 4 * trained  # a LoRA is kept in fp32
        trained_width, largest, factored = 4, trained // 100, trained // load.rank
    else:
        trained, trained_width, largest = unet + text, width, sizes.largest
        factored = sizes.factored + text // 100
    optimizer = 4.0 * factored if way.optimizer == "adafactor" else OPTIMIZER_BYTES[way.optimizer] * trained
    activations = _activations(sizes, load, way)
    # Adafactor has four copies of a block in fp32 while it moves it; AdamW in one kernel has none, 8-bit neither
    workspace = 16 * min(largest, GPU_BLOCK) if way.optimizer == "adafactor" else 0
    gradients = trained_width * (largest if way.fused_backward else trained)
    if not load.rank and not way.fused_backward:
        gradients += (text_width - width) * text
    parts = (weights, gradients, int(optimizer), activations, workspace)
    return Estimate(*parts, overhead=_LIBRARIES + int(_GAPS * sum(parts)))


def generation(sizes: ModelSizes, load: Load, way: Way, *, one_part: bool = False) -> int:
    """Bytes at the worst moment while class images or samples are generated, the VAE in fp32.

    The text encoders, where they are not trained, leave before the UNet is asked. one_part: and the UNet and the VAE
    take turns on the device; what the optimizer keeps stays there.
    """
    there = estimate(sizes, load, way)
    kept = sizes.text * _text_width(load, way) if load.text else 0
    text = sizes.text * (2 if load.rank else 4)
    mode = _mode(way)
    cells = (load.side / sizes.pixels_per_latent) ** 2
    denoised = _GUIDED_ROWS * cells * _DENOISED_CELL.get(sizes.family, _DENOISED_CELL["sd1"])[mode]
    if mode == "mixed":
        denoised += 2 * sizes.unet  # autocast's copies of the weights
    decoded = _DECODED_CELL * cells
    if one_part:
        taken = max(text, there.weights - kept + denoised, _VAE + decoded)
    else:
        taken = there.weights + _VAE + max(0 if load.text else text, denoised, decoded)
    return _LIBRARIES + int((1 + _GAPS) * (taken + there.optimizer))


def _text_width(load: Load, way: Way) -> int:
    """Bytes of a number in text encoders that learn: those of a LoRA lie as the UNet does, all others are fp32."""
    return BYTES[way.weights] if load.rank else BYTES["fp32"]


def _mode(way: Way) -> str:
    return "half" if BYTES[way.weights] == 2 else "fp32" if way.precision == "fp32" else "mixed"


def _activations(sizes: ModelSizes, load: Load, way: Way) -> int:
    mode = _mode(way)
    cells = (load.side / sizes.pixels_per_latent) ** 2
    per_cell = _CELL.get(sizes.family, _CELL["sd1"])[mode][way.checkpointing]
    taken = per_cell * cells * load.rows
    if mode == "mixed":
        taken += 2 * sizes.unet  # autocast's copies of the weights
    if load.text:
        # 34 bytes in half precision for each channel, token and layer (Korthikanti et al. 2022, arXiv 2205.05198)
        taken += 34 * 77 * sizes.text_width * load.rows * BYTES[way.precision] / 2
    return int(taken)
