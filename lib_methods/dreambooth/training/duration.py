"""Before a run: how long it takes, how large its result is, and the plan as page, log and programs are told it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from lib_methods.checkpoints.layout import Shapes
from lib_methods.device import device_memory, device_words
from lib_methods.dreambooth.model.base import BaseModel, prediction_told, read_base
from lib_methods.dreambooth.model.memory import BYTES, DTYPES, GIB
from lib_methods.dreambooth.model.model import CPU, Parts, TrainingModel, wait_for
from lib_methods.dreambooth.settings import TrainingSettings, from_json
from lib_methods.dreambooth.training.plan import PLAN_FIELDS, TrainingPlan, plan_training, resolved
from lib_methods.dreambooth.training.state import RECORD, read_record
from lib_methods.errors import UserError
from lib_methods.jobs.files import JobFiles, all_records
from lib_methods.jobs.log import LogReader, number

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
    """Images in one pass: photos and as many of the class."""
    return plan.batch_size * (1 if settings.prior == "off" else 2)


def step_passes(settings: TrainingSettings, plan: TrainingPlan) -> float:
    """What a step takes, in forward passes of `rows_of` images."""
    passes = _PASSES + _ANEW * plan.checkpointing + 0.5 * (settings.prior == "model")
    return plan.accumulation * passes


def training_seconds(settings: TrainingSettings, plan: TrainingPlan, forward: float) -> float:
    """The time for the steps and, at most, for the class images, where a forward pass of `rows_of` images takes
    `forward` seconds.

    Samples, encoding and the result's writing come on top; they are short.
    """
    total = settings.steps * step_passes(settings, plan) * forward
    return total + settings.generated_class_images * settings.class_steps * 2 * forward / rows_of(settings, plan)


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
        "class_images": settings.generated_class_images,
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
    """About what a forward pass takes. rows: images in it. cells: height and width of the latent. speed: as
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


_GUESSED = "Whether this SD 2 model is for 768 or 512 pixels is known when it is loaded; this plan assumes {side}."


class Machine(Protocol):
    """What the host knows about the device that a run gets: `lib_methods.hosts.training`."""

    def device(self) -> torch.device:
        """The device."""

    def memory(self, device: torch.device, occupied: bool) -> int | None:
        """Bytes that a run will find free on it, once the host's model has left. None where nobody knows.

        occupied: a training runs, which will have ended.
        """

    def may_compute(self, device: torch.device) -> bool:
        """Whether the device has nothing to do, so that something may be measured on it."""


class OwnMachine:
    """Without a host: the GPU if there is one, as the trainer itself chooses."""

    def device(self) -> torch.device:
        return torch.device("cuda") if torch.cuda.is_available() else CPU

    def memory(self, device: torch.device, occupied: bool) -> int | None:
        return device_memory(device)

    def may_compute(self, device: torch.device) -> bool:
        return True


def preview(
    settings: TrainingSettings,
    photos: int | Sequence[int],
    machine: Machine,
    root: Path,
    running: bool = False,
    told: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan of a run, in the fields that its own log will tell, and "estimated": its seconds were not timed.

    photos: how many there are, of each subject. told: what is known of them, for the notes. root: the folder of the
    runs, which is only read. running: one runs now. Raises UserError with the sentence why it cannot be
    trained: the base model, or too little memory.
    """
    base = read_base(settings.base)
    sizes, device = base.sizes, machine.device()
    chosen = resolved(settings, photos=photos, resolution=sizes.resolution, unet_parameters=sizes.unet)
    memory = int(settings.memory * GIB) or machine.memory(device, running)
    plan = plan_training(chosen, sizes, device, memory)
    words = device_words(device)
    forward = None
    pace = seconds_per_step(root, base, chosen, plan, words)
    if pace is not None:
        forward = pace / step_passes(chosen, plan)
    elif speed := known_speed(device, plan.precision, machine.may_compute(device) and not running):
        side = chosen.resolution // base.sizes.pixels_per_latent
        forward = forward_seconds(count_work(base.unet_shapes), rows_of(chosen, plan), (side, side), device, speed)
    seconds = None if forward is None else training_seconds(chosen, plan, forward)
    schedule = base.schedule
    told = (*told, *prediction_told(schedule.prediction, schedule.zero_terminal_snr))
    plan = replace(plan, notes=(*told, *plan.notes))
    notes = [_GUESSED.format(side=chosen.resolution)] if base.guessed and not settings.resolution else []
    return {**plan_fields(chosen, plan, base, words, seconds, notes), "estimated": True}


_MOST_LOOKED_AT = 20
_FEWEST_STEPS = 5  # the first ones are slower
_SETTINGS = ("kind", "rank", "convolutions", "train_text", "prior", "resolution")


def seconds_per_step(
    root: Path, base: BaseModel, settings: TrainingSettings, plan: TrainingPlan, device: str
) -> float | None:
    """That of the newest training in the folder `root` that did the same work: on this device, with a base model of
    the same sizes, these settings and this plan. None where there is none."""
    for record in all_records(root)[:_MOST_LOOKED_AT]:
        files = JobFiles(root, record.name)
        try:
            marks = [(file.stat().st_mtime_ns, file.stat().st_size) for file in (files.training / RECORD, files.log)]
        except OSError:
            continue
        found = _facts(files, tuple(marks))
        if found is None or found[1:] != (device, base.sizes, _of(settings, _SETTINGS), tuple(plan.fields.values())):
            continue
        return float(found[0])
    return None


@lru_cache(maxsize=_MOST_LOOKED_AT)
def _facts(files: JobFiles, marks: object) -> tuple[Any, ...] | None:
    """Seconds a step, and what they depend on; None where the training did not come far or cannot be read."""
    progress = LogReader(files.log).read()
    pace = number(progress.of("step").get("seconds_per_step"))
    if not pace or progress.step < _FEWEST_STEPS:
        return None
    try:
        record = read_record(files.training) or {}
        settings = from_json(record["resolved"])
        plan = {name: record["plan"][name] for name in PLAN_FIELDS}
        sizes = read_base(settings.base).sizes
    except (UserError, KeyError, TypeError, ValueError, OSError):
        return None
    return pace, progress.of("plan").get("device"), sizes, _of(settings, _SETTINGS), tuple(plan.values())


def _of(holder: object, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(holder, name) for name in names)
