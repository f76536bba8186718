"""One process, or several that train one model together: the same command under `accelerate launch`.

Each process has its share of each batch; gradients are averaged between backward pass and step, so that weights stay
the same everywhere. Each holds the whole model, unless the launcher's configuration is one for FSDP or DeepSpeed: then
the UNet is sharded, which averages its gradients by itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lib_methods.errors import UserError
from lib_methods.files import read_json

# what is gathered at a time; inner ones first, an outer one then holds what is left
_BLOCKS = frozenset({"BasicTransformerBlock", "Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"})
T = TypeVar("T")
# names of FSDP's strategies, which version 2 has as a switch
_WHOLE = frozenset({"no_shard", "3"})
_KEPT = frozenset({"shard_grad_op", "hybrid_shard_zero2", "2", "5", "false"})


@dataclass(frozen=True)
class Sharding:
    """How the weights are to be sharded. asked_by: the launcher's name for it. frees: whether a block's weights are let
    go between forward and backward pass (ZeRO stage 3), which takes less memory and a second gathering."""

    asked_by: str
    frees: bool


def asked_sharding(environment: Mapping[str, str] = os.environ) -> Sharding | None:
    """What the configuration of `accelerate launch` asks for; None for whole copies. Raises UserError."""
    if is_on(environment, "ACCELERATE_USE_FSDP"):
        names = ("FSDP_SHARDING_STRATEGY", "FSDP_RESHARD_AFTER_FORWARD")
        asked = {environment.get(name, "").lower() for name in names}
        return None if asked & _WHOLE else Sharding("FSDP", frees=not asked & _KEPT)
    if not is_on(environment, _DEEPSPEED):
        return None
    try:
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
        if file and file.lower() != "none":
            stage = int(read_json(Path(file)).get("zero_optimization", {}).get("stage", 0))
        else:
            stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError("The launcher's configuration for DeepSpeed cannot be read.") from error
    return None if stage == 0 else Sharding("DeepSpeed", frees=stage == 3)


def is_on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes")


def can_shard() -> bool:
    """Whether this PyTorch can: from 2.6 on."""
    try:
        return hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard")
    except ImportError:
        return False


def shard(unet: nn.Module, sharding: Sharding, device: torch.device) -> None:
    """Shards all weights of `unet` over the processes, block by block, and takes them to `device`.

    The module's calls are collective from then on: each process must make the same ones. Its weights are other
    objects than before. Only where `can_shard`.
    """
    fully_shard = importlib.import_module("torch.distributed.fsdp").fully_shard
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh(
        device.type, (torch.distributed.get_world_size(),)
    )
    for module in reversed(list(unet.modules())):
        if module is unet or type(module).__name__ in _BLOCKS:
            fully_shard(module, mesh=mesh, reshard_after_forward=sharding.frees)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor` only."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process' part, which shares its memory with `tensor`."""
    return cast("Tensor", cast("Any", tensor).to_local()) if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of the tensor. Collective."""
    return cast("Tensor", cast("Any", tensor).full_tensor()) if is_sharded(tensor) else tensor


def sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole `value` sharded as `parameter` is, on its device. Collective."""
    there = value.to(parameter.device)
    if not is_sharded(parameter):
        return there
    like = cast("Any", parameter)
    distribute = importlib.import_module("torch.distributed.tensor").distribute_tensor
    return cast("Tensor", distribute(there, like.device_mesh, like.placements))


def joined(part: Tensor, parameter: Tensor) -> Tensor:
    """A value of which each process has its `part`, in the way that it has `parameter`."""
    if not is_sharded(parameter):
        return part
    like = cast("Any", parameter)
    made = importlib.import_module("torch.distributed.tensor").DTensor.from_local(
        part.to(parameter.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return cast("Tensor", made)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Holds the norm of all gradients together to `most`; returns what it was. Collective where some are sharded."""
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded:
        return float(nn.utils.clip_grad_norm_(parameters, most))
    others = [p for p in parameters if not is_sharded(p)]
    apart = ([p.grad for p in group if p.grad is not None] for group in (sharded, others))
    norms = [whole(nn.utils.get_total_norm(gradients)) for gradients in apart if gradients]
    norm = torch.stack([n.float() for n in norms]).norm()
    for parameter in parameters:
        assert parameter.grad is not None
        local(parameter.grad).mul_((most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def gathered(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on the CPU, in the main process; empty in the others. Collective.

    A tensor that is not sharded stays as it is.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    found = whole(tensor.detach())
    return found.cpu() if torch.distributed.get_rank() == 0 else torch.empty(0)


_BUCKET = 1 << 24  # numbers that are averaged in one go
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_PATIENCE = timedelta(hours=12)  # while the first process generates class images, the others wait


class Processes:
    """The only process; and what a run asks of several.

    rank: from 0 on; the main process, 0, writes files and talks. device: this process'. sharding: how the UNet is
    sharded, None for a whole copy in each process. notes: sentences for the user.
    """

    rank, count = 0, 1
    sharding: Sharding | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_sharded(self) -> bool:
        return self.sharding is not None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, work: Callable[[], T], otherwise: T) -> T:
        """What the main process' `work` gives, such as writing a file; in the others `otherwise`."""
        return work() if self.is_main else otherwise

    def once(self, work: Callable[[], T], otherwise: T) -> T:
        """What `work` gives, such as images, where it is done once for all: in the main process, and with sharded
        weights in every one, as each has a part of them. `otherwise` in the others."""
        return work() if self.is_main or self.is_sharded else otherwise

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Makes every gradient the mean over all processes, between the last backward pass and the step."""

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them: what one process decides, all do at the same step."""
        return flag

    def wait(self) -> None:
        """Until all of them are here."""
        self.any(False)

    def close(self) -> None:
        """Leave the others."""

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` makes in each process: in the main one first, so that the others find its files."""
        if not self.is_main:
            self.wait()
            return make()
        made = make()
        self.wait()
        return made

    def main_says(self, ask: Callable[[], bool]) -> bool:
        """What the main process answers, within `once`."""
        answer = self.on_main(ask, False)
        return self.any(answer) if self.is_sharded else answer

    def any_says(self, ask: Callable[[], bool]) -> bool:
        """Whether one of the processes says so, within `once`."""
        return self.any(ask()) if self.is_sharded else ask()

    def spread(self, unet: nn.Module) -> None:
        """Shards the UNet where that was asked for; whole it need not fit on the device any more."""
        if self.sharding is not None:
            nn.Module.to(unet, torch.device("cpu"))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            shard(unet, self.sharding, self.device)


class Several(Processes):
    """One of several processes, found and connected by accelerate."""

    def __init__(self, state: Any, reduce: Any, sharding: Sharding | None) -> None:
        """state: accelerate's PartialState. reduce: its function for all processes' means, sums and maxima."""
        self._state, self._reduce = state, reduce
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.device = torch.device("cpu") if state.device.type == "cpu" else torch.device(state.device)
        self.notes: tuple[str, ...] = (f"{self.count} processes train together, each with a share of the batch.",)
        self.sharding = sharding if can_shard() else None
        if self.sharding is not None:
            more = "" if self.sharding.frees else "; within a step each holds all weights"
            self.notes += (f"The UNet, its gradients and optimizer are sharded over {self.count} processes{more}.",)
        elif sharding is not None:
            self.notes += (
                f"{sharding.asked_by} needs PyTorch 2.6 or newer here: the weights are not sharded, each process holds "
                "all of them.",
            )

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
        for bucket in _buckets(gradients):
            averaged = self._reduce(torch.cat([g.flatten() for g in bucket]).float(), "mean")
            for gradient, values in zip(bucket, averaged.split([g.numel() for g in bucket])):
                gradient.copy_(values.view_as(gradient))

    def mean(self, value: float) -> float:
        # in fp32, as not every device has fp64
        return float(self._reduce(torch.tensor([value], device=self.device), "mean"))

    def any(self, flag: bool) -> bool:
        return bool(self._reduce(torch.tensor([float(flag)], device=self.device), "sum") > 0)

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self._state._reset_state()


def start_processes(device: torch.device | None = None) -> Processes:
    """The processes of this run: one, unless `accelerate launch` or torchrun started several.

    device: None for the GPU where there is one. Raises `UserError` where accelerate is missing or the
    launcher's configuration cannot be read.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes(device)
    try:
        accelerate = importlib.import_module("accelerate")
        reduce = importlib.import_module("accelerate.utils").reduce
    except ImportError as error:
        raise UserError(
            "Training on several devices needs the package accelerate. Install it, or start the training without "
            "a launcher, on one."
        ) from error
    on_cpu = not torch.cuda.is_available() if device is None else device.type == "cpu"
    sharding = asked_sharding()
    hidden = {name: os.environ.pop(name) for name in (_DEEPSPEED,) if name in os.environ}
    try:  # sharding needs torch's own process group only
        state = accelerate.PartialState(cpu=on_cpu or is_on(os.environ, "ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    finally:
        os.environ.update(hidden)
    return Several(state, reduce, sharding)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in their order, as many together as make a bucket."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
