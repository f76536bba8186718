"""What a run does before it starts: what the settings leave open is chosen, and what fits into the memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lib_methods.device import device_memory, half_precision
from lib_methods.dreambooth.model.memory import DTYPES, GIB, Estimate, Load, ModelSizes, Way, estimate, generation
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.optimizers import has_8bit
from lib_methods.errors import UserError

PAPER_UNET = 860e6  # parameters of the UNet that the usual rates are for, SD1's
FULL_RATE = 5e-6  # the paper's
LORA_RATE = 1e-4
PRODIGY_RATE = 1.0
FULL_STEPS = (250, 500, 1500)  # a photo, at least, at most; the paper: about 1000 for 4 photos
LORA_STEPS = (250, 600, 2000)
TEXT_SHARE = 0.5  # of the UNet's rate; the text encoder forgets faster
LOOKS = 5  # samples over a run, and twice as many where the best is to be found


def resolved(
    settings: TrainingSettings, *, photos: int | Sequence[int], resolution: int, unet_parameters: int
) -> TrainingSettings:
    """The settings with nothing left open. photos: how many, of each subject. resolution: the model's own, in pixels.

    The learning rate of a smaller UNet than SD1's is larger, as the inverse of its width, the square root of its size
    (Yang et al. 2022, arXiv 2203.03466); a larger one has SD1's.
    """
    full = settings.kind == "full"
    per_photo, least, most = FULL_STEPS if full else LORA_STEPS
    steps = settings.steps or sum(
        min(most, max(least, per_photo * count)) for count in ([photos] if isinstance(photos, int) else photos)
    )
    width = max(1.0, math.sqrt(PAPER_UNET / max(1, unet_parameters)))
    prodigy = settings.optimizer == "prodigy"  # finds the rate by itself, and has one for all weights
    rate = settings.rate or (PRODIGY_RATE if prodigy else min(1e-2, (FULL_RATE if full else LORA_RATE) * width))
    prior = settings.prior
    if prior == "auto":
        own = any(concept.class_folder is not None for concept in settings.all_concepts)
        prior = "images" if full or own else "model"
    looks = 2 * LOOKS if settings.select_best else LOOKS
    return replace(
        settings,
        steps=steps,
        rate=rate,
        text_rate=settings.text_rate or (rate if prodigy else TEXT_SHARE * rate),
        prior=prior,
        resolution=settings.resolution or resolution,
        sample_every=settings.sample_every or max(1, math.ceil(steps / looks)),
        warm_up=min(settings.warm_up, steps),
    )


def rate_scale(settings: TrainingSettings, step: int) -> float:
    """What the learning rates are multiplied with at a step (from 0 on): warm-up, then the schedule, never zero."""
    warm = min(1.0, (step + 1) / settings.warm_up) if settings.warm_up else 1.0
    if settings.schedule == "constant":
        return warm
    length = max(1, settings.steps - settings.warm_up)
    left = 1 - min(1.0, max(0.0, (step - settings.warm_up) / length))
    return warm * (0.5 * (1 - math.cos(math.pi * left)) if settings.schedule == "cosine" else left)


def text_steps(settings: TrainingSettings) -> int:
    """The number of steps in which the text encoder learns."""
    return math.ceil(settings.steps * settings.text_stop) if settings.train_text else 0


_NAMES = {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL"}
# what a way costs in time or in exactness: the cheapest one that fits is taken
_COST = {"adamw": 0.0, "prodigy": 0.0, "adamw8bit": 2.0, "adafactor": 3.5}

PLAN_FIELDS = ("precision", "weights", "optimizer", "fused_backward", "checkpointing", "batch_size", "accumulation")
"""What of a plan the steps depend on, in their numbers and in their time."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Way):
    """How a training runs.

    batch_size: photos in one pass; with a prior as many class images come on top. accumulation: passes before the
    weights move. notes: sentences for the user. one_part_at_a_time: UNet, text encoders and VAE take turns on the
    device whenever more than the UNet is needed and nothing is trained: where texts are embedded, images encoded and
    generated.
    """

    batch_size: int
    accumulation: int
    estimate: Estimate
    notes: tuple[str, ...]
    one_part_at_a_time: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """Those of `PLAN_FIELDS`."""
        return {name: getattr(self, name) for name in PLAN_FIELDS}

    @property
    def weight_dtype(self) -> torch.dtype:
        return DTYPES[self.weights]

    @property
    def autocast(self) -> torch.dtype | None:
        """What to ask autocast for; None: compute in the weights' own precision, without autocast."""
        return None if self.precision == self.weights else DTYPES[self.precision]

    @property
    def scaled(self) -> bool:
        """Whether the loss must be scaled, as fp16 needs it."""
        return self.precision == "fp16"


def plan_training(
    settings: TrainingSettings,
    sizes: ModelSizes,
    device: torch.device,
    memory: int | None = None,
    processes: int = 1,
    half: str | None = None,
    *,
    sharded: bool = False,
) -> TrainingPlan:
    """The fastest and most exact way that fits.

    memory: in bytes; where not given that of the settings, and else what the device has free. half: the device's fast
    precision, as `half_precision` says if not given. What the settings name (precision, optimizer, fused backward pass,
    checkpointing) is kept to. sharded: the UNet, over the processes. Raises `UserError`, which says what would
    fit, where nothing does.
    """
    if memory is None:
        memory = int(settings.memory * GIB) or device_memory(device)
    if settings.optimizer == "adamw8bit" and not has_8bit():
        raise UserError(
            "8-bit AdamW needs the package bitsandbytes, which is not installed. "
            "Install it, or choose AdamW or Adafactor."
        )
    half = half or half_precision(device)
    if sharded and settings.optimizer not in ("auto", "adamw"):
        raise UserError(
            "With sharded weights (FSDP, DeepSpeed) the optimizer is AdamW: choose it, or train with whole copies."
        )
    shards = processes if sharded else 1
    ways = sorted(_ways(settings, device, processes, half, shards), key=_cost)
    if not ways:
        raise UserError(
            "The fused backward pass works on one GPU only. Turn it off, or train on one GPU."
            if processes > 1
            else "The fused backward pass does not work with fp16. Choose bf16 or fp32, or turn it off."
        )
    batch = settings.batch_size
    # the whole batch, or gathered over passes, which a fused backward pass cannot; at last a smaller one, fused
    whole = [rows for rows in range(batch, 0, -1) if batch % rows == 0]
    tries = [(rows, batch // rows, way) for rows in whole for way in ways if rows == batch or not way.fused_backward]
    tries += [(rows, 1, way) for rows in range(batch - 1, 0, -1) for way in ways if way.fused_backward]
    for rows, passes, way in tries:
        found = estimate(sizes, _load(settings, sizes, rows), way)
        if memory is None or found.total <= memory:
            return _plan(settings, sizes, way, rows, passes, found, memory)
    raise UserError(_too_small(settings, sizes, ways, half, memory or 0))


def _ways(settings: TrainingSettings, device: torch.device, processes: int, half: str, shards: int) -> Iterator[Way]:
    """All that can be had together and that the settings leave open."""
    precisions = [settings.precision] if settings.precision != "auto" else list(dict.fromkeys((half, "fp32")))
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
        if lora:
            kept = [precision]
        else:
            kept = ["fp32", "bf16"] if precision == "bf16" and optimizer == "adafactor" else ["fp32"]
        for weights, checkpointing in itertools.product(kept, [True] if settings.checkpointing else [False, True]):
            yield Way(weights, precision, optimizer, fused, checkpointing, shards)


def _cost(way: Way) -> float:
    halved = 1.2 * (way.weights == "bf16")  # less than checkpointing: rounded stochastically, little is lost
    slow = 8.0 * (way.precision == "fp32")
    # AdamW's gradients are clipped better unfused; Adafactor clips its updates itself
    fused = (-0.2 if way.optimizer == "adafactor" else 1.0) * way.fused_backward
    return _COST[way.optimizer] + halved + slow + 2.5 * way.checkpointing + fused


def _load(settings: TrainingSettings, sizes: ModelSizes, rows: int, *, rank: int | None = None) -> Load:
    if rank is None:
        rank = settings.rank if settings.kind == "LoRA" else 0
    return Load(
        rows=rows * (1 if settings.prior == "off" else 2),
        side=settings.resolution or sizes.resolution,
        rank=rank,
        convolutions=settings.convolutions,
        text=settings.train_text,
    )


def _plan(
    settings: TrainingSettings, sizes: ModelSizes, way: Way, rows: int, passes: int, found: Estimate, memory: int | None
) -> TrainingPlan:
    what = "A LoRA" if settings.kind == "LoRA" else "Full training"
    side = settings.resolution or sizes.resolution
    there = "" if memory is None else f" of {memory / GIB:.1f}"
    notes = [
        f"{what} of {_NAMES[sizes.family]} at {side} pixels takes about {found.total / GIB:.1f}{there} GiB.",
        f"Of these: {found.sentence()}.",
    ]
    if way.weights == "bf16" and settings.kind == "full":
        notes.append("Weights are stored in bf16 with stochastic rounding, so that small steps are not lost.")
    if way.fused_backward:
        notes.append("Weights are updated during the backward pass, each as soon as its gradient is there.")
    if way.checkpointing:
        notes.append("Gradient checkpointing is on: it saves memory and takes about a quarter longer.")
    if rows * passes < settings.batch_size:
        notes.append(f"The batch size was lowered from {settings.batch_size} to {rows}, because more does not fit.")
    elif passes > 1:
        notes.append(f"A batch of {settings.batch_size} is accumulated over {passes} passes of {rows}.")
    load = _load(settings, sizes, rows)
    together, in_turn = generation(sizes, load, way), generation(sizes, load, way, one_part=True)
    short = memory is not None and together > memory and way.shards == 1  # shards of the UNet stay where they are
    if memory is not None and min(together, in_turn) > memory:
        notes.append(
            f"Generating class images and samples takes more, about {in_turn / GIB:.1f} GiB: it may be skipped."
        )
    elif short:
        notes.append(
            "Class images and samples are generated with one part of the model at a time, which takes a bit longer: "
            f"about {in_turn / GIB:.1f} GiB instead of {together / GIB:.1f}."
        )
    return TrainingPlan(
        **vars(way),
        batch_size=rows,
        accumulation=settings.accumulation * passes,
        estimate=found,
        notes=tuple(notes),
        one_part_at_a_time=short,
    )


def _too_small(settings: TrainingSettings, sizes: ModelSizes, ways: list[Way], half: str, memory: int) -> str:
    least = min(estimate(sizes, _load(settings, sizes, 1), way).total for way in ways)
    what = "this LoRA" if settings.kind == "LoRA" else "full training"
    text = f"{memory / GIB:.1f} GiB are not enough: {what} takes at least about {least / GIB:.1f} GiB."
    would = []
    if settings.kind == "full":
        way = Way(half, half, "adamw", False, True)
        lora = estimate(sizes, _load(settings, sizes, 1, rank=16), way).total
        if lora <= memory:
            would.append(f"a LoRA would fit ({lora / GIB:.1f} GiB)")
    for side in (768, 640, 512, 384, 256):
        if side < (settings.resolution or sizes.resolution):
            load = replace(_load(settings, sizes, 1), side=side)
            smaller = min(estimate(sizes, load, way).total for way in ways)
            if smaller <= memory:
                would.append(f"so would images of {side} pixels ({smaller / GIB:.1f} GiB)")
                break
    told = " and ".join(would) or "choose a smaller base model or a device with more memory"
    return f"{text} {told[0].upper()}{told[1:]}."
