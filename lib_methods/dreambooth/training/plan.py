"""The plan of a run: what the settings leave open is chosen, and the fastest way to train that fits the memory.

Memory is counted from the weights and from the table of `python -m tests.dreambooth.count_memory`: the bytes a pass
through the UNet holds at most beside the weights, per latent cell and row. They grow in proportion to both, as
attention is computed without its matrix (torch's `scaled_dot_product_attention`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from lib_methods.device import DTYPES, GIB, device_memory, half_precision
from lib_methods.dreambooth.model.base import ModelSizes
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.adafactor import GPU_BLOCK
from lib_methods.dreambooth.training.optimizers import has_8bit
from lib_methods.errors import UserError


@dataclass(frozen=True)
class Way:
    """One way to train: precisions, and what saves memory at the price of time.

    weights: precision of the UNet's weights; a LoRA's are always fp32. batch_size: photos in one pass; with a prior as
    many class images come on top. accumulation: passes per step. shards: processes that share the UNet, 1 for whole
    copies.
    """

    weights: str
    precision: str
    optimizer: str
    fused_backward: bool
    checkpointing: bool
    batch_size: int = 1
    accumulation: int = 1
    shards: int = 1


PLAN_FIELDS = tuple(field.name for field in fields(Way) if field.name != "shards")
"""The part of a plan that the steps depend on, in their numbers and in their time."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Way):
    """How a run trains.

    memory: bytes by what they are for, see `estimate`. notes: sentences for the user. one_part_at_a_time: UNet, text
    encoders and VAE take turns on the device while texts are embedded and images are encoded or generated.
    """

    memory: dict[str, int]
    notes: tuple[str, ...]
    one_part_at_a_time: bool

    @property
    def fields(self) -> dict[str, Any]:
        """Those of `PLAN_FIELDS`."""
        return {name: getattr(self, name) for name in PLAN_FIELDS}

    @property
    def autocast(self) -> torch.dtype | None:
        """What to ask autocast for; None: compute in the weights' own precision, without autocast."""
        return None if self.precision == self.weights else DTYPES[self.precision]


# Bytes per cell and row of a pass: forward and backward, the same with checkpointing, and forward alone without
# gradients. Computed in half precision throughout, under autocast with fp32 weights, and in fp32.
CELL_BYTES = {
    "sd1": {"half": (232_500, 58_800, 16_700), "mixed": (308_000, 55_400, 17_400), "fp32": (464_500, 117_500, 33_400)},
    "sdxl": {"half": (422_400, 43_500, 10_200), "mixed": (532_600, 41_700, 12_900), "fp32": (844_800, 87_000, 20_300)},
}
# the VAE in fp32, and bytes per cell for decoding one image without gradients; encoding takes less
VAE_BYTES, DECODED_CELL_BYTES = 4 * 83_653_863, 196_700
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.1, "prodigy": 16.0}  # per number; 8-bit with its blocks' scales
_GUIDED_ROWS = 2  # of an image with guidance; where there is room, several are generated together
_LIBRARIES = int(0.5 * GIB)  # a CUDA context with the libraries' workspaces
_GAPS = 0.05  # lost by the allocator between tensors
_GATHERED = 0.15  # of sharded weights: two of the largest blocks of SD1.5's UNet, and what is in no block


def estimate(sizes: ModelSizes, settings: TrainingSettings, way: Way) -> dict[str, int]:
    """Bytes on the device at the worst moment of a pass, by what they are for.

    workspace: of the optimizer. overhead: the device's libraries, and gaps between tensors.
    """
    width, lora = DTYPES[way.weights].itemsize, settings.kind == "LoRA"
    text = sizes.text if settings.train_text else 0
    unet = -(-sizes.unet // way.shards)
    weights = unet * width + text * _text_width(settings, way)
    if way.shards > 1:
        weights += int(_GATHERED * sizes.unet) * width
    if lora:
        trained = sizes.lora + sizes.lora_convolutions * settings.convolutions + sizes.lora_text * settings.train_text
        factored, trained, width = trained, settings.rank * trained, 4
        weights += width * trained
        largest = trained // 100
    else:
        trained, largest, factored = unet + text, sizes.largest, sizes.factored + text // 100
    adafactor = way.optimizer == "adafactor"
    gradients = width * (largest if way.fused_backward else trained)
    if not lora and not way.fused_backward:
        gradients += (_text_width(settings, way) - width) * text
    images = way.batch_size * (1 if settings.prior == "off" else 2)
    activations = _pass_bytes(sizes, settings, way, images, int(way.checkpointing))
    if settings.train_text:
        # 34 bytes in half precision for each channel, token and layer (Korthikanti et al. 2022, arXiv 2205.05198)
        activations += 34 * 77 * sizes.text_width * images * DTYPES[way.precision].itemsize / 2
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": int(4.0 * factored if adafactor else _OPTIMIZER_BYTES[way.optimizer] * trained),
        "activations": int(activations),
        # four copies of a block in fp32 while Adafactor moves it; AdamW in one kernel has none, 8-bit neither
        "workspace": 16 * min(largest, GPU_BLOCK) if adafactor else 0,
    }
    return {**parts, "overhead": _LIBRARIES + int(_GAPS * sum(parts.values()))}


def generation(sizes: ModelSizes, settings: TrainingSettings, way: Way, memory: dict[str, int]) -> tuple[int, int]:
    """Bytes at the worst moment while class images or samples are generated, the VAE in fp32: with the whole model on
    the device, and one part at a time. memory: that of `estimate`.

    Text encoders that are not trained leave before the UNet is asked. What the optimizer keeps stays on the device.
    """
    text = sizes.text * (2 if settings.kind == "LoRA" else 4)
    learning = sizes.text * _text_width(settings, way) if settings.train_text else 0
    denoised = _pass_bytes(sizes, settings, way, _GUIDED_ROWS, 2)
    latent = sizes.pixels_per_latent > 1  # a pixel stage has no VAE
    vae, decoded = VAE_BYTES * latent, DECODED_CELL_BYTES * _cells(sizes, settings) * latent
    together = memory["weights"] + vae + max(0 if settings.train_text else text, denoised, decoded)
    in_turn = max(text, memory["weights"] - learning + denoised, vae + decoded)
    whole, least = (_LIBRARIES + int((1 + _GAPS) * (taken + memory["optimizer"])) for taken in (together, in_turn))
    return whole, least


def _cells(sizes: ModelSizes, settings: TrainingSettings) -> float:
    return ((settings.resolution or sizes.resolution) / sizes.pixels_per_latent) ** 2


def _text_width(settings: TrainingSettings, way: Way) -> int:
    """Bytes per number of text encoders that learn: fp32, but under a LoRA as the UNet."""
    return DTYPES[way.weights].itemsize if settings.kind == "LoRA" else 4


def _pass_bytes(sizes: ModelSizes, settings: TrainingSettings, way: Way, rows: int, kind: int) -> float:
    """kind: the column of `CELL_BYTES`."""
    half = DTYPES[way.weights].itemsize == 2
    mode = "half" if half else "fp32" if way.precision == "fp32" else "mixed"
    table = CELL_BYTES.get(sizes.family, CELL_BYTES["sd1"])
    cell = table[mode][kind] if sizes.cell_bytes is None else sizes.cell_bytes(mode, kind)
    taken = cell * _cells(sizes, settings) * rows
    return taken + 2 * sizes.unet * (mode == "mixed")  # autocast's copies of the weights


def plan_training(
    settings: TrainingSettings,
    sizes: ModelSizes,
    device: torch.device,
    memory: int | None = None,
    processes: int = 1,
    *,
    sharded: bool = False,
) -> TrainingPlan:
    """The fastest and most exact way that fits.

    memory: in bytes; by default the settings', else what the device has free. What the settings name (precision,
    optimizer, fused backward pass, checkpointing) is kept. sharded: the UNet, over the processes. Raises `UserError`,
    which says what would fit, if nothing does.
    """
    if memory is None:
        memory = int(settings.memory * GIB) or device_memory(device)
    if settings.optimizer == "adamw8bit" and not has_8bit():
        raise UserError(
            "8-bit AdamW needs the package bitsandbytes, which is not installed. "
            "Install it, or choose AdamW or Adafactor."
        )
    if sharded and settings.optimizer not in ("auto", "adamw"):
        raise UserError(
            "With sharded weights (FSDP, DeepSpeed) the optimizer is AdamW: choose it, or train with whole copies."
        )
    ways = sorted(_ways(settings, device, processes, processes if sharded else 1), key=_cost)
    if not ways:
        raise UserError(
            "The fused backward pass works on one GPU only. Turn it off, or train on one GPU."
            if processes > 1
            else "The fused backward pass does not work with fp16. Choose bf16 or fp32, or turn it off."
        )
    batch, passes = settings.batch_size, settings.accumulation
    # the whole batch, or accumulated over passes, which a fused backward pass cannot; at last a smaller one, fused
    whole = [(rows, passes * batch // rows) for rows in range(batch, 0, -1) if batch % rows == 0]
    tries = [(size, way) for size in whole for way in ways if size == whole[0] or not way.fused_backward]
    tries += [((rows, 1), way) for rows in range(batch - 1, 0, -1) for way in ways if way.fused_backward]
    for (rows, count), way in tries:
        way = replace(way, batch_size=rows, accumulation=count)
        taken = estimate(sizes, settings, way)
        if memory is None or sum(taken.values()) <= memory:
            together, in_turn = generation(sizes, settings, way, taken)
            # shards of the UNet stay where they are
            short = memory is not None and together > memory and way.shards == 1
            notes = _notes(settings, sizes, way, taken, memory)
            if memory is not None and min(together, in_turn) > memory:
                notes.append(
                    f"Generating class images and samples takes more, about {in_turn / GIB:.1f} GiB: it may be skipped."
                )
            elif short:
                notes.append(
                    "Class images and samples are generated with one part of the model at a time, which takes a bit "
                    f"longer: about {in_turn / GIB:.1f} GiB instead of {together / GIB:.1f}."
                )
            return TrainingPlan(**vars(way), memory=taken, notes=tuple(notes), one_part_at_a_time=short)
    raise UserError(_too_small(settings, sizes, ways, device, memory or 0))


def _ways(settings: TrainingSettings, device: torch.device, processes: int, shards: int) -> Iterator[Way]:
    """All combinations that work and that the settings leave open."""
    precisions = [settings.precision]
    if settings.precision == "auto":
        precisions = list(dict.fromkeys((half_precision(device), "fp32")))
    lora = settings.kind == "LoRA"
    optimizers = [settings.optimizer]
    if settings.optimizer == "auto":
        optimizers = ["adamw"] if lora or shards > 1 else ["adamw", "adafactor"]
        if not lora and shards == 1 and has_8bit() and device.type == "cuda":
            optimizers.append("adamw8bit")
    if settings.fused_backward:
        fusing = [True]
    else:
        alone = lora or processes > 1 or settings.accumulation > 1 or settings.optimizer == "prodigy"
        fusing = [False] if alone else [False, True]
    for precision, optimizer, fused in itertools.product(precisions, optimizers, fusing):
        if fused and (precision == "fp16" or processes > 1):
            continue
        kept = [precision] if lora else ["fp32"]
        if not lora and precision == "bf16" and optimizer == "adafactor":
            kept.append("bf16")
        for weights, checkpointing in itertools.product(kept, [True] if settings.checkpointing else [False, True]):
            yield Way(weights, precision, optimizer, fused, checkpointing, shards=shards)


def _cost(way: Way) -> float:
    """What a way costs in time or in exactness: the cheapest one that fits is taken."""
    optimizer = {"adamw": 0.0, "prodigy": 0.0, "adamw8bit": 2.0, "adafactor": 3.5}[way.optimizer]
    halved = 1.2 * (way.weights == "bf16")  # less than checkpointing: rounded stochastically, little is lost
    slow = 8.0 * (way.precision == "fp32")
    # AdamW's gradients are clipped better unfused; Adafactor clips its updates itself
    fused = (-0.2 if way.optimizer == "adafactor" else 1.0) * way.fused_backward
    return optimizer + halved + slow + 2.5 * way.checkpointing + fused


def _notes(
    settings: TrainingSettings, sizes: ModelSizes, way: Way, taken: dict[str, int], memory: int | None
) -> list[str]:
    what = "A LoRA" if settings.kind == "LoRA" else "Full training"
    model = sizes.words or {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL"}[sizes.family]
    side = settings.resolution or sizes.resolution
    there = "" if memory is None else f" of {memory / GIB:.1f}"
    notes = [
        f"{what} of {model} at {side} pixels takes about {sum(taken.values()) / GIB:.1f}{there} GiB.",
        f"Of these: {', '.join(f'{name} {part / GIB:.1f}' for name, part in taken.items())} GiB.",
    ]
    if way.weights == "bf16" and settings.kind == "full":
        notes.append("Weights are stored in bf16 with stochastic rounding, so that small steps are not lost.")
    if way.fused_backward:
        notes.append("Weights are updated during the backward pass, each as soon as its gradient is there.")
    if way.checkpointing:
        notes.append("Gradient checkpointing is on: it saves memory and takes about a quarter longer.")
    batch, passes = settings.batch_size, way.accumulation // settings.accumulation
    if way.batch_size * passes < batch:
        notes.append(f"The batch size was lowered from {batch} to {way.batch_size}, because more does not fit.")
    elif passes > 1:
        notes.append(f"A batch of {batch} is accumulated over {passes} passes of {way.batch_size}.")
    return notes


def _too_small(
    settings: TrainingSettings, sizes: ModelSizes, ways: list[Way], device: torch.device, memory: int
) -> str:
    def least(settings: TrainingSettings, ways: list[Way]) -> int:
        return min(sum(estimate(sizes, settings, way).values()) for way in ways)

    what = "this LoRA" if settings.kind == "LoRA" else "full training"
    would = []
    if settings.kind == "full":
        half = half_precision(device)
        lora = least(replace(settings, kind="LoRA", rank=16), [Way(half, half, "adamw", False, True)])
        if lora <= memory:
            would.append(f"a LoRA would fit ({lora / GIB:.1f} GiB)")
    sides = (768, 640, 512, 384, 256) if sizes.cell_bytes is None else ()  # a cascade has its own
    for side in sides:
        if side < (settings.resolution or sizes.resolution):
            smaller = least(replace(settings, resolution=side), ways)
            if smaller <= memory:
                would.append(f"so would images of {side} pixels ({smaller / GIB:.1f} GiB)")
                break
    told = " and ".join(would) or "choose a smaller base model or a device with more memory"
    return (
        f"{memory / GIB:.1f} GiB are not enough: {what} takes at least about {least(settings, ways) / GIB:.1f} GiB. "
        f"{told[0].upper()}{told[1:]}."
    )
