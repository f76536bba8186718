"""Before a training: how long it will take, and how large its result will be."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from .lora import places
from .memory import Plan
from .model import TrainingModel
from .places import Parts
from .settings import TrainingSettings

_PASSES = 3.0  # a forward and a backward pass, in forward passes
_ANEW = 1.0  # what gradient checkpointing computes a second time
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


def seconds_needed(model: TrainingModel, settings: TrainingSettings, plan: Plan) -> float:
    """An estimate for the steps and, at most, for the class images, from one timed pass through the UNet on its device.

    Samples, encoding and the result's writing come on top; they are short.
    """
    parts = Parts(model, one_at_a_time=plan.one_part_at_a_time, dtype=plan.autocast)
    device = parts.device
    rows = plan.batch_size * (1 if settings.prior == "off" else 2)
    side = settings.resolution // model.pixels_per_latent
    latents = torch.zeros(rows, model.latent_channels, side, side, device=device)
    with torch.no_grad(), parts.embedding():
        text = model.embed([""] * rows)
    with torch.no_grad(), parts.denoising():
        times = torch.full((rows,), 500, device=device)
        model.predict(latents, times, text)  # the first one is slower
        started = time.monotonic()
        _wait_for(model.predict(latents, times, text))
        forward = time.monotonic() - started
    passes = _PASSES + _ANEW * plan.checkpointing + 0.5 * (settings.prior == "model")
    total = settings.steps * plan.accumulation * passes * forward
    if settings.prior == "images":
        total += settings.class_images * settings.class_steps * 2 * forward / rows
    return total


def _wait_for(out: Tensor) -> None:
    out.flatten()[:1].tolist()


def result_bytes(model: TrainingModel, settings: TrainingSettings) -> int:
    """About the size of the result's file."""
    if settings.kind == "LoRA":
        width = _BYTES.get(settings.saved_as, 2)
        layers = places(model, convolutions=settings.convolutions, text=settings.train_text)
        shapes = [place.base.weight.shape for place in layers]
        return width * settings.rank * sum(shape[0] + shape[1:].numel() for shape in shapes)
    counts = {name: _count(module) for name, module in (("unet", model.unet), ("vae", model.vae))}
    counts["text"] = sum(_count(encoder) for encoder in model.encoders)
    before = _source_width(settings.base, sum(counts.values()))
    width = _BYTES.get(settings.saved_as, before)
    trained = {"unet", "text"} if settings.train_text else {"unet"}
    return sum(count * (width if name in trained else before) for name, count in counts.items())


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _source_width(base: Path, count: int) -> int:
    """Bytes of a number in the source: 2 or 4, as its size tells."""
    files = [base] if base.is_file() else list(base.rglob("*.safetensors"))
    return 4 if sum(file.stat().st_size for file in files) > 3 * count else 2
