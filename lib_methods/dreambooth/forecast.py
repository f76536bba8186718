"""Before a training: how long it will take, how large its result will be, and the plan as it is told."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from .header_sizes import BaseModel
from .memory import Plan
from .model import TrainingModel
from .places import Parts, wait_for
from .settings import TrainingSettings
from .sizes import BYTES

# A forward and a backward pass, in forward passes. A LoRA's needs no gradients of the model's own weights, but has its
# own layers instead.
_PASSES = 3.0
_ANEW = 1.0  # what gradient checkpointing computes a second time


def seconds_needed(model: TrainingModel, settings: TrainingSettings, plan: Plan) -> float:
    """An estimate as `training_seconds` makes it, from one timed pass through the UNet on its device."""
    parts = Parts(model, one_at_a_time=plan.one_part_at_a_time, dtype=plan.autocast)
    device = parts.device
    rows = rows_of(settings, plan)
    side = settings.resolution // model.pixels_per_latent
    latents = torch.zeros(rows, model.latent_channels, side, side, device=device)
    with torch.no_grad(), parts.embedding():
        text = model.embed([""] * rows)
    with torch.no_grad(), parts.denoising():
        times = torch.full((rows,), 500, device=device)
        model.predict(latents, times, text)  # the first one is slower
        started = time.monotonic()
        wait_for(model.predict(latents, times, text))
        forward = time.monotonic() - started
    return training_seconds(settings, plan, forward)


def rows_of(settings: TrainingSettings, plan: Plan) -> int:
    """Pictures in one pass: photos and as many of the class."""
    return plan.batch_size * (1 if settings.prior == "off" else 2)


def step_passes(settings: TrainingSettings, plan: Plan) -> float:
    """What a step takes, in forward passes of `rows_of` pictures."""
    passes = _PASSES + _ANEW * plan.checkpointing + 0.5 * (settings.prior == "model")
    return plan.accumulation * passes


def training_seconds(settings: TrainingSettings, plan: Plan, forward: float) -> float:
    """The time for the steps and, at most, for the class images, where a forward pass of `rows_of` pictures takes
    `forward` seconds.

    Samples, encoding and the result's writing come on top; they are short.
    """
    total = settings.steps * step_passes(settings, plan) * forward
    return total + settings.drawn_class_images * settings.class_steps * 2 * forward / rows_of(settings, plan)


def result_bytes(base: BaseModel, settings: TrainingSettings) -> int:
    """About the size of the result's file."""
    if settings.kind == "LoRA":
        numbers = base.lora
        numbers += base.lora_convolutions if settings.convolutions else 0
        numbers += base.lora_text if settings.train_text else 0
        return BYTES.get(settings.saved_as, 2) * settings.rank * numbers
    size = base.size
    for part in (base.unet, base.text) if settings.train_text else (base.unet,):
        if settings.saved_as in BYTES:  # else as the source has it
            size += BYTES[settings.saved_as] * part.count - part.size
    return size


def plan_fields(
    settings: TrainingSettings,
    plan: Plan,
    base: BaseModel,
    device: str,
    seconds: float | None,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """The plan as the log, the page and programs are told it. settings: with nothing left open. notes: more of them."""
    return {
        "steps": settings.steps,
        "rate": settings.rate,
        "batch_size": plan.batch_size,
        "accumulation": plan.accumulation,
        "precision": plan.precision,
        "optimizer": plan.optimizer,
        "prior": settings.prior,
        "class_images": settings.drawn_class_images,
        "bytes": plan.estimate.total,
        "device": device,
        "result_bytes": result_bytes(base, settings),
        "seconds": seconds,
        "notes": [*plan.notes, *notes],
    }
