"""What a job takes, before anything is loaded: each part's memory from its headers, and which parts stay.

Activations are counted, not guessed: the network of the configuration runs once on tensors without content, and the
bytes of all tensors that live at once are added up, as are its operations, which say how long it takes beside others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lib_methods.cascade.folder import TOKENS, Cascade, Part, Stage, encoder_width
from lib_methods.cascade.parts import put, skeleton
from lib_methods.cascade.settings import CascadeSettings
from lib_methods.cascade.text import Encoder, has_8_bits
from lib_methods.device import CPU, DTYPES, GIB, LiveBytes, device_memory, half_precision
from lib_methods.errors import UserError

_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "8 bit": 1.1}
_LARGE = 500_000_000  # numbers of a text encoder that the CPU runs in bf16
_LIBRARIES = GIB // 2  # a CUDA context with the libraries' workspaces
_MOST_AT_ONCE = 16  # images, beyond which a batch is no faster


@dataclass(frozen=True)
class PartPlan:
    """A part's memory in bytes. activations: of one image. on: the device that it runs on. images: at once. operations:
    of one pass with one image, where they are counted."""

    what: str
    weights: int
    activations: int
    on: torch.device
    images: int = 1
    operations: int = 0

    @property
    def working(self) -> int:
        return self.activations * self.images

    @property
    def total(self) -> int:
        return self.weights + self.working


@dataclass(frozen=True)
class CascadePlan:
    """How a job runs. keep_all: all parts stay. batch: images at once, by stage. operations: of a step with one image,
    by stage. encoders: by stage, where the text has to be encoded or may be. memory: that of the device, in bytes,
    where it is known."""

    device: torch.device
    precision: str
    parts: tuple[PartPlan, ...]
    keep_all: bool
    batch: dict[int, int]
    operations: dict[int, int]
    encoders: dict[int, Encoder]
    memory: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def largest(self) -> PartPlan:
        return max(self.parts, key=lambda part: part.total)

    @property
    def one_at_a_time(self) -> int:
        """Bytes at the worst moment where each part is there only while it works."""
        return max((part.total for part in self.parts if part.on == self.device), default=0)

    @property
    def together(self) -> int:
        """Bytes at the worst moment where all parts stay."""
        here = [part for part in self.parts if part.on == self.device]
        return sum(part.weights for part in here) + max((part.working for part in here), default=0)

    def notes(self) -> list[str]:
        """Sentences for the user."""
        largest = self.largest
        told = [
            f"The largest part is {largest.what}: {_size(largest.weights)} of weights and {_size(largest.working)} "
            f"while it works on {largest.images} at once."
        ]
        if self.keep_all:
            told.append(f"All parts stay in memory, {_size(self.together)} together.")
        else:
            told.append(
                f"One part is in memory at a time: {_size(self.one_at_a_time)} instead of {_size(self.together)}."
            )
        for number, encoder in self.encoders.items():
            if number == 1 or 1 not in self.encoders:
                where = "the CPU" if encoder.device.type == "cpu" else "the GPU"
                told.append(f"The text encoder runs in {encoder.precision} on {where}.")
                break
        return told


def plan_cascade(
    cascade: Cascade,
    settings: CascadeSettings,
    device: torch.device,
    *,
    sizes: dict[int, tuple[int, int]],
    count: int,
    memory: int | None = None,
) -> CascadePlan:
    """Chooses precision, batches, and whether parts stay. sizes: (height, width) in pixels of what each stage makes.
    memory: in bytes, None for the settings' or what is free.

    Raises UserError where the largest part does not fit, and CheckpointError.
    """
    if memory is None:
        memory = int(settings.memory * GIB) or device_memory(device)
    room = None if memory is None else memory - (_LIBRARIES if device.type == "cuda" else 0)
    precision = half_precision(device) if settings.precision == "auto" else settings.precision
    parts: list[PartPlan] = []
    batch: dict[int, int] = {}
    operations: dict[int, int] = {}
    for stage in cascade.stages:
        for part in _stage_parts(stage, sizes[stage.number], precision, device, settings.stage(stage.number).guidance):
            if room is not None and part.total > room:
                raise UserError(_too_small(part, room))
            if part.what.endswith("UNet"):
                fits = _MOST_AT_ONCE if room is None else (room - part.weights) // max(1, part.activations)
                batch[stage.number] = max(1, min(count, fits, settings.batch or _MOST_AT_ONCE))
                part = replace(part, images=batch[stage.number])
                operations[stage.number] = part.operations
            parts.append(part)
    encoders = {}
    for stage in cascade.stages:
        if stage.text is not None:
            encoder = choose_encoder(stage.text, settings, device, room)
            encoders[stage.number] = encoder
            planned = _text_plan(encoder)
            if planned not in parts:
                parts.append(planned)
    keep_all = settings.residence == "all"
    plan = CascadePlan(device, precision, tuple(parts), keep_all, batch, operations, encoders, memory)
    if plan.keep_all and room is not None and plan.together > room:
        raise UserError(
            f"All parts together take about {_size(plan.together)}, and {_size(room)} are there. Choose one at a time."
        )
    if settings.residence == "auto":
        return replace(plan, keep_all=room is not None and plan.together <= room)
    return plan


def choose_encoder(part: Part, settings: CascadeSettings, device: torch.device, room: int | None) -> Encoder:
    """Where and in what a text encoder runs: on the GPU in half precision or 8 bits where it fits, else on the CPU."""
    asked = settings.text_precision
    if asked == "8 bit" and not has_8_bits(device):
        raise UserError("8 bit needs the packages bitsandbytes and accelerate, and an NVIDIA GPU. Choose bf16.")
    tries = [asked] if asked != "auto" else [half_precision(device), *(["8 bit"] if has_8_bits(device) else [])]
    if device.type != "cpu":
        for precision in tries:
            encoder = Encoder(part, device, precision)
            if room is None or _text_plan(encoder).total <= room:
                return encoder
    on_cpu = "bf16" if part.numbers > _LARGE else "fp32"
    return Encoder(part, CPU, on_cpu if asked in ("auto", "8 bit") else asked)


def _text_plan(encoder: Encoder) -> PartPlan:
    part = encoder.part
    weights = part.numbers * _BYTES[encoder.precision]
    if encoder.precision == "fp16" and encoder.is_t5:  # layers that overflow stay in fp32
        weights += 2 * sum(head.count for name, head in part.weights.heads.items() if name.endswith(".wo.weight"))
    width = max(encoder_width(part), int(part.config.get("d_ff") or part.config.get("intermediate_size") or 0))
    heads = int(part.config.get("num_heads") or part.config.get("num_attention_heads") or 1)
    activations = 4 * TOKENS * (8 * width + 4 * TOKENS * heads)
    name = f"the text encoder of {part.folder.name}"
    return PartPlan(name, int(weights), activations, encoder.device)


def _stage_parts(
    stage: Stage, size: tuple[int, int], precision: str, device: torch.device, guidance: float
) -> list[PartPlan]:
    """The UNet's, and in stage III the VAE's, which runs in fp32."""
    worked = size[0] // stage.factor, size[1] // stage.factor
    rows = 2 if guidance > 1 else 1
    name = f"{stage.folder.name}'s"
    activations, operations = _counted(Counted(stage.unet), worked, rows, precision, stage.text_width)
    weights = int(stage.unet.numbers * _BYTES[precision])
    found = [PartPlan(f"{name} UNet", weights, activations, device, operations=operations)]
    if stage.vae is not None:
        decoded, _ = _counted(Counted(stage.vae), worked, 1, "fp32", 0)
        found.append(PartPlan(f"{name} VAE", int(4 * stage.vae.numbers), decoded, device))
    return found


class Counted:
    """A part as a key: equal configurations take equal memory."""

    def __init__(self, part: Part) -> None:
        self.part, self.key = part, json.dumps(dict(part.config), sort_keys=True, default=str)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counted) and other.key == self.key


@lru_cache(maxsize=64)
def _counted(counted: Counted, size: tuple[int, int], rows: int, precision: str, width: int) -> tuple[int, int]:
    """Bytes that a pass holds at most beside the weights, and its operations."""
    config, dtype = counted.part.config, DTYPES[precision]
    with torch.device("meta"):
        module: Any = skeleton(counted.part)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    with torch.no_grad(), FakeTensorMode(), LiveBytes() as live, FlopCounterMode(display=False) as work:
        for name, shape in shapes.items():
            put(module, name, torch.empty(shape, dtype=dtype))
        live.peak = before = live.live
        one_pass(module, config, size, rows, dtype, width)
        return live.peak - before, int(work.get_total_flops())


def one_pass(module: Any, config: Any, size: tuple[int, int], rows: int, dtype: torch.dtype, width: int) -> Tensor:
    """Once through a UNet, or for a VAE's configuration, out of it; what comes out."""
    if "latent_channels" in config:
        return module.decode(torch.empty(1, config["latent_channels"], *size, dtype=dtype), return_dict=False)[0]
    options: dict[str, Any] = {}
    if config.get("class_embed_type") == "timestep" or config.get("num_class_embeds"):
        options["class_labels"] = torch.zeros(rows, dtype=torch.long)
    return module(
        torch.empty(rows, config["in_channels"], *size, dtype=dtype),
        torch.zeros((), dtype=torch.long),
        encoder_hidden_states=torch.empty(rows, TOKENS, width, dtype=dtype),
        return_dict=False,
        **options,
    )[0]


def _too_small(part: PartPlan, room: int) -> str:
    return (
        f"{_size(room)} of memory are not enough: {part.what} takes about {_size(part.total)}, even alone. Choose fp16 "
        "as precision, a smaller image or a smaller model."
    )


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
