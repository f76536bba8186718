"""Before a training: how long it will take, how large its result will be, and the plan as it is told."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lib_methods.checkpoints.layout import Shapes
from lib_methods.dreambooth.model.base import BaseModel
from lib_methods.dreambooth.model.memory import BYTES, DTYPES
from lib_methods.dreambooth.model.model import Parts, TrainingModel, wait_for
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.plan import TrainingPlan

# A forward and a backward pass, in forward passes. A LoRA's needs no gradients of the model's own weights, but has its
# own layers instead.
_PASSES = 3.0
_ANEW = 1.0  # what gradient checkpointing computes a second time


def seconds_needed(model: TrainingModel, settings: TrainingSettings, plan: TrainingPlan) -> float:
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


def rows_of(settings: TrainingSettings, plan: TrainingPlan) -> int:
    """Pictures in one pass: photos and as many of the class."""
    return plan.batch_size * (1 if settings.prior == "off" else 2)


def step_passes(settings: TrainingSettings, plan: TrainingPlan) -> float:
    """What a step takes, in forward passes of `rows_of` pictures."""
    passes = _PASSES + _ANEW * plan.checkpointing + 0.5 * (settings.prior == "model")
    return plan.accumulation * passes


def training_seconds(settings: TrainingSettings, plan: TrainingPlan, forward: float) -> float:
    """The time for the steps and, at most, for the class images, where a forward pass of `rows_of` pictures takes
    `forward` seconds.

    Samples, encoding and the result's writing come on top; they are short.
    """
    total = settings.steps * step_passes(settings, plan) * forward
    return total + settings.drawn_class_images * settings.class_steps * 2 * forward / rows_of(settings, plan)


def result_bytes(base: BaseModel, settings: TrainingSettings) -> int:
    """About the size of the result's file."""
    if settings.kind == "LoRA":
        numbers = base.sizes.lora
        numbers += base.sizes.lora_convolutions if settings.convolutions else 0
        numbers += base.sizes.lora_text if settings.train_text else 0
        return BYTES.get(settings.saved_as, 2) * settings.rank * numbers
    size = base.size
    for part in (base.unet, base.text) if settings.train_text else (base.unet,):
        if settings.saved_as in BYTES:  # else as the source has it
            size += BYTES[settings.saved_as] * part.count - part.size
    return size


def plan_fields(
    settings: TrainingSettings,
    plan: TrainingPlan,
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


TOKENS = 77  # of the text
_ONCE = ("time_embedding", "add_embedding")  # for an image, not for each cell of its latent


@dataclass(frozen=True)
class Work:
    """What a pass through a UNet takes. dense: multiply-adds for each cell of a level; level 0 has the latent's cells,
    each next one a quarter of them. attention: the summed widths of a level's self-attentions; cross: of those that
    look at the text. token: multiply-adds for each of the text's tokens. once: for each image. layers: how many weights
    there are. Norms and activations are part of the efficiency below.
    """

    dense: tuple[int, ...]
    attention: tuple[int, ...]
    cross: tuple[int, ...]
    token: int
    once: int
    layers: int

    def multiply_adds(self, height: int, width: int) -> int:
        """Of a forward pass for one image of so many latent cells."""
        total = self.once + TOKENS * self.token
        for level, (dense, attention, cross) in enumerate(zip(self.dense, self.attention, self.cross)):
            cells = -(-height // 2**level) * -(-width // 2**level)
            # scores and their product with the values: two products of (cells, width) by (others, width) each
            total += cells * (dense + 2 * attention * cells + 2 * cross * TOKENS)
        return total


def count_work(shapes: Shapes) -> Work:
    """That of the UNet with these weights, by diffusers' names."""
    levels = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("down_blocks.")), default=0)
    dense, attention, cross = ([0] * levels for _ in range(3))
    token = once = layers = 0
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        numbers, level = math.prod(shape), _level(name, levels)
        layers += 1
        if name.startswith(_ONCE) or ".time_emb_proj." in name:
            once += numbers
        elif name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
            token += numbers
        else:
            dense[level] += numbers
        if name.endswith(".attn1.to_q.weight"):
            attention[level] += shape[0]
        elif name.endswith(".attn2.to_q.weight"):
            cross[level] += shape[0]
    return Work(tuple(dense), tuple(attention), tuple(cross), token, once, layers)


def _level(name: str, levels: int) -> int:
    """The level that a layer writes to: how often the side was halved."""
    part, number, *_ = name.split(".")
    if part == "mid_block":
        return levels - 1
    if part == "down_blocks":
        return int(number) + (".downsamplers." in name)
    return levels - 1 - int(number) - (".upsamplers." in name) if part == "up_blocks" else 0


# What a UNet gets of the speed of plain products; the rest goes into norms, activations and small matrices. CPU:
# measured on one core with UNets of 17, 66 and 224 million parameters, 1 to 8 latents of 16 x 16 or 32 x 32: .53 to
# .65. GPU: not measured, an assumption for SD1 and larger in half precision; it may be wrong by half.
_SHARE = {"cpu": 0.57, "cuda": 0.4}
# Seconds that a layer takes whatever its size. A CPU waits for it before it computes (measured: 65 to 130
# microseconds, UNets of 1 and 4 million parameters, latents of 8 x 8). A GPU computes meanwhile, and the longer of both
# counts (assumed).
_LAYER = {"cpu": 100e-6, "cuda": 90e-6}
_SIDES = {"cpu": 512, "cuda": 4096}  # of the probe's matrices
_PROBE = 0.07  # seconds
_KNOWN: dict[tuple[str, str], float] = {}
_GUARD = threading.Lock()


def forward_seconds(work: Work, rows: int, cells: tuple[int, int], device: torch.device, speed: float) -> float:
    """About what a forward pass takes. rows: pictures in it. cells: height and width of the latent. speed: as
    `known_speed` gives it."""
    computing = rows * work.multiply_adds(*cells) / (speed * _SHARE.get(device.type, _SHARE["cpu"]))
    starting = work.layers * _LAYER.get(device.type, _LAYER["cpu"])
    return max(computing, starting) if device.type == "cuda" else computing + starting


def known_speed(device: torch.device, precision: str, may_probe: bool = True) -> float | None:
    """Multiply-adds a second. None: it has not been measured, and may not be now, or cannot be, for lack of memory."""
    key = (str(device), precision)
    with _GUARD:
        if key not in _KNOWN and may_probe:
            measured = _probe(device, DTYPES[precision])
            if measured is not None:
                _KNOWN[key] = measured
        return _KNOWN.get(key)


@torch.no_grad()
def _probe(device: torch.device, dtype: torch.dtype) -> float | None:
    """The speed of the fastest product within the probe's time: others may use the machine meanwhile."""
    side = _SIDES.get(device.type, _SIDES["cpu"])
    try:
        matrix = torch.full((side, side), 0.01, device=device, dtype=dtype)
        wait_for(matrix @ matrix)  # the first one is slower
        end, least = time.perf_counter() + _PROBE, float("inf")
        while (started := time.perf_counter()) < end:
            wait_for(matrix @ matrix)
            least = min(least, time.perf_counter() - started)
        return side**3 / least
    except RuntimeError:  # no memory for it, or no such products on this device
        return None
