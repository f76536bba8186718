"""How long a run takes and how large its result is, and the plan as page, log and programs read it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from lib_methods.checkpoints.layout import Shapes
from lib_methods.device import DTYPES, GIB, device_words
from lib_methods.dreambooth.model.base import BaseModel, prediction_told, read_base
from lib_methods.dreambooth.model.model import Parts, TrainingModel, wait_for
from lib_methods.dreambooth.settings import TrainingSettings, from_json, resolved
from lib_methods.dreambooth.training.plan import TrainingPlan, plan_training
from lib_methods.dreambooth.training.state import read_record
from lib_methods.errors import UserError
from lib_methods.jobs.files import JobFiles, all_records
from lib_methods.jobs.log import LogReader, number


class Machine(Protocol):
    """What the host knows about the device that a run gets: `lib_methods.hosts.training`."""

    def device(self) -> torch.device: ...

    def memory(self, device: torch.device, occupied: bool) -> int | None: ...

    def may_compute(self, device: torch.device) -> bool: ...


def preview(
    settings: TrainingSettings,
    photos: Sequence[int],
    machine: Machine,
    root: Path,
    running: bool = False,
    told: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan of a run, in the fields of its log, and "estimated": no pass was timed.

    photos: the number for each subject. told: notes about them. root: the folder of the runs, which is only read.
    running: one runs now. Raises UserError with the reason why it cannot be trained: the base model or the memory.
    """
    base, device = read_base(settings.base), machine.device()
    chosen = resolved(settings, photos=photos, resolution=base.sizes.resolution, unet_parameters=base.sizes.unet)
    plan = plan_training(chosen, base.sizes, device, int(settings.memory * GIB) or machine.memory(device, running))
    words = device_words(device)
    forward = None
    if (pace := _earlier_pace(root, base, chosen, plan, words)) is not None:
        forward = pace / _step_passes(chosen, plan)
    elif speed := known_speed(device, plan.precision, machine.may_compute(device) and not running):
        side = chosen.resolution // base.sizes.pixels_per_latent
        forward = forward_seconds(base.unet_shapes, _rows(chosen, plan), (side, side), device, speed)
    seconds = None if forward is None else _run_seconds(chosen, plan, forward)
    told = (*told, *prediction_told(base.schedule.prediction, base.schedule.zero_terminal_snr), *plan.notes)
    if base.guessed and not settings.resolution:
        told += (
            "Whether this SD 2 model is for 768 or 512 pixels is known when it is loaded; this plan assumes "
            f"{chosen.resolution}.",
        )
    return {**plan_fields(chosen, replace(plan, notes=told), base, words, seconds), "estimated": True}


def plan_fields(
    settings: TrainingSettings, plan: TrainingPlan, base: BaseModel, device: str, seconds: float | None
) -> dict[str, Any]:
    """The plan as log, page and programs read it. settings: with nothing left open."""
    return {
        "steps": settings.steps,
        "rate": settings.rate,
        "batch_size": plan.batch_size,
        "accumulation": plan.accumulation,
        "precision": plan.precision,
        "optimizer": plan.optimizer,
        "prior": settings.prior,
        "class_images": settings.generated_class_images,
        "bytes": sum(plan.memory.values()),
        "device": device,
        "result_bytes": _result_bytes(base, settings),
        "seconds": seconds,
        "notes": list(plan.notes),
    }


def _result_bytes(base: BaseModel, settings: TrainingSettings) -> int:
    saved = DTYPES.get(settings.saved_as)  # None: as the source has it
    if settings.kind == "LoRA":
        numbers = base.sizes.lora + base.sizes.lora_convolutions * settings.convolutions
        numbers += base.sizes.lora_text * settings.train_text
        return (2 if saved is None else saved.itemsize) * settings.rank * numbers
    trained = (base.unet, base.text) if settings.train_text else (base.unet,)
    return base.size + (0 if saved is None else sum(saved.itemsize * part.count - part.size for part in trained))


# -- seconds, from those of a forward pass


def seconds_needed(model: TrainingModel, settings: TrainingSettings, plan: TrainingPlan) -> float:
    """For the steps and, at most, for the class images, from one timed pass through the UNet on its device."""
    parts = Parts(model, one_at_a_time=plan.one_part_at_a_time, dtype=plan.autocast)
    device, rows = parts.device, _rows(settings, plan)
    side = settings.resolution // model.pixels_per_latent
    unet: Any = model.unet
    latents = torch.zeros(rows, unet.config.in_channels, side, side, device=device)
    with torch.no_grad(), parts.embedding():
        text = model.embed([""] * rows)
    with torch.no_grad(), parts.denoising():
        times = torch.full((rows,), 500, device=device)
        model.predict(latents, times, text)  # the first one is slower
        started = time.monotonic()
        wait_for(model.predict(latents, times, text))
        return _run_seconds(settings, plan, time.monotonic() - started)


def _rows(settings: TrainingSettings, plan: TrainingPlan) -> int:
    """Images in one pass: photos and as many of the class."""
    return plan.batch_size * (1 if settings.prior == "off" else 2)


def _step_passes(settings: TrainingSettings, plan: TrainingPlan) -> float:
    """A step in forward passes: forward and backward are three. A LoRA's needs no gradients of the model's own weights,
    but has layers of its own; checkpointing computes one again."""
    return plan.accumulation * (3.0 + plan.checkpointing + 0.5 * (settings.prior == "model"))


def _run_seconds(settings: TrainingSettings, plan: TrainingPlan, forward: float) -> float:
    """Steps and class images; samples, encoding and writing the result are short."""
    total = settings.steps * _step_passes(settings, plan) * forward
    return total + settings.generated_class_images * settings.class_steps * 2 * forward / _rows(settings, plan)


# -- the pace of an earlier run

_MOST_LOOKED_AT = 20
_FEWEST_STEPS = 5  # the first ones are slower
_SETTINGS = ("kind", "rank", "convolutions", "train_text", "prior", "resolution")


def _earlier_pace(
    root: Path, base: BaseModel, settings: TrainingSettings, plan: TrainingPlan, device: str
) -> float | None:
    """Seconds per step of the newest run in the folder `root` that did the same work on the same device, or None."""
    for record in all_records(root)[:_MOST_LOOKED_AT]:
        files = JobFiles(root, record.name)
        try:
            kept = read_record(files.folder) or {}
            before = from_json(kept["resolved"])
            same = all(getattr(before, name) == getattr(settings, name) for name in _SETTINGS)
            same = same and all(kept["plan"][name] == value for name, value in plan.fields.items())
            if not same or read_base(before.base).sizes != base.sizes:
                continue
        except (UserError, KeyError, TypeError, ValueError, OSError):
            continue
        progress = LogReader(files.log).read()
        pace = number(progress.of("step").get("seconds_per_step"))
        if pace and progress.step >= _FEWEST_STEPS and progress.of("plan").get("device") == device:
            return pace
    return None


# -- without one: the UNet's multiply-adds over the device's speed

_TOKENS = 77  # of the text
_ONCE = ("time_embedding", "add_embedding")  # for an image, not for each cell of its latent
# The share a UNet gets of the speed of plain products; norms, activations and small matrices take the rest. CPU: .53 to
# .65 measured on one core with UNets of 17, 66 and 224 million parameters. GPU: assumed, may be wrong by half.
_SHARE = {"cpu": 0.57, "cuda": 0.4}
# Seconds per layer whatever its size. A CPU waits for it (65 to 130 microseconds measured with UNets of 1 and 4 million
# parameters); a GPU computes meanwhile, and the longer of both counts (assumed).
_LAYER = {"cpu": 100e-6, "cuda": 90e-6}
_PROBE = 0.07  # seconds
_KNOWN: dict[tuple[str, str], float] = {}
_GUARD = threading.Lock()


def multiply_adds(shapes: Shapes, height: int, width: int) -> int:
    """Of a forward pass for one image of so many latent cells. shapes: the UNet's, by diffusers' names."""
    levels = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("down_blocks.")), default=0)
    total = 0
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        part, number, *_ = name.split(".")
        level = 0  # that the layer writes to: how often the side was halved
        if part == "mid_block":
            level = levels - 1
        elif part == "down_blocks":
            level = int(number) + (".downsamplers." in name)
        elif part == "up_blocks":
            level = levels - 1 - int(number) - (".upsamplers." in name)
        cells = -(-height // 2**level) * -(-width // 2**level)
        # attention: scores and their product with the values, of cells with each other or with the text
        if name.endswith(".attn1.to_q.weight"):
            total += 2 * shape[0] * cells * cells
        elif name.endswith(".attn2.to_q.weight"):
            total += 2 * shape[0] * cells * _TOKENS
        if name.startswith(_ONCE) or ".time_emb_proj." in name:
            cells = 1
        elif name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
            cells = _TOKENS
        total += cells * math.prod(shape)
    return total


def forward_seconds(shapes: Shapes, rows: int, cells: tuple[int, int], device: torch.device, speed: float) -> float:
    """About what a forward pass of `rows` images takes. cells: the latent's height and width. speed: `known_speed`."""
    computing = rows * multiply_adds(shapes, *cells) / (speed * _SHARE.get(device.type, _SHARE["cpu"]))
    layers = sum(len(shape) > 1 for shape in shapes.values())
    starting = layers * _LAYER.get(device.type, _LAYER["cpu"])
    return max(computing, starting) if device.type == "cuda" else computing + starting


def known_speed(device: torch.device, precision: str, may_probe: bool) -> float | None:
    """Multiply-adds a second, measured once. None: it may not be measured now, or cannot be, for lack of memory."""
    key = (str(device), precision)
    with _GUARD:
        if key not in _KNOWN and may_probe and (measured := _probe(device, DTYPES[precision])) is not None:
            _KNOWN[key] = measured
        return _KNOWN.get(key)


@torch.no_grad()
def _probe(device: torch.device, dtype: torch.dtype) -> float | None:
    """The speed of the fastest product within the probe's time: others may use the machine meanwhile."""
    side = 4096 if device.type == "cuda" else 512
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
