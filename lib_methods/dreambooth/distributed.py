"""One process, or several that train one model together: the same command under `accelerate launch`.

Each process has its share of each batch; gradients are averaged between backward pass and step, so that weights stay
the same everywhere. Each holds the whole model, unless the launcher's configuration is one for FSDP or DeepSpeed: then
the UNet is sharded (`sharding.py`), which averages its gradients by itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.sharding import Sharding, asked_sharding, can_shard, is_on, is_sharded

T = TypeVar("T")
_BUCKET = 1 << 24  # numbers that are averaged in one go
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_PATIENCE = timedelta(hours=12)  # while the first process draws class images, the others wait


class Processes(Protocol):
    """What a training asks of the processes that it consists of.

    rank: from 0 on. is_main: whether this one writes files and talks. device: this process'. sharding: how the UNet is
    to be sharded, None for a whole copy in each process. takes_part: whether this one takes part in what is done once,
    as drawing and saving: the main one does, and where weights are sharded all do. notes: sentences for the user.
    """

    rank: int
    count: int
    is_main: bool
    device: torch.device
    sharding: Sharding | None
    takes_part: bool
    notes: tuple[str, ...]

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process' rows of a batch that was drawn for all."""

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Make every gradient the mean over all processes, between the last backward pass and the step."""

    def mean(self, value: float) -> float:
        """The mean over all processes."""

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them: what one process decides, all do at the same step."""

    def wait(self) -> None:
        """Until all of them are here."""

    def close(self) -> None:
        """Leave the others."""


class Single:
    """The only process."""

    rank, count, is_main = 0, 1, True
    sharding: Sharding | None = None
    takes_part = True
    notes: tuple[str, ...] = ()

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def share(self, rows: Sequence[T]) -> list[T]:
        return list(rows)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Nothing to average."""

    def mean(self, value: float) -> float:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def wait(self) -> None:
        """For nobody."""

    def close(self) -> None:
        """Nobody to leave."""


class Several:
    """One of several processes, found and connected by accelerate."""

    def __init__(self, state: Any, reduce: Any, sharding: Sharding | None) -> None:
        """state: accelerate's PartialState. reduce: its function for all processes' means, sums and maxima."""
        self._state, self._reduce = state, reduce
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.is_main = self.rank == 0
        self.device = torch.device("cpu") if state.device.type == "cpu" else torch.device(state.device)
        self.notes: tuple[str, ...] = (f"{self.count} processes train together, each with a share of the batch.",)
        self.sharding = sharding if can_shard() else None
        self.takes_part = self.is_main or self.sharding is not None
        if self.sharding is not None:
            self.notes += (self.sharding.sentence(self.count),)
        elif sharding is not None:
            self.notes += (
                f"{sharding.asked_by} needs PyTorch 2.6 or newer here: the weights are not sharded, each process holds "
                "all of them.",
            )

    def share(self, rows: Sequence[T]) -> list[T]:
        return list(rows[self.rank :: self.count])

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

    def wait(self) -> None:
        self.any(False)

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self._state._reset_state()


def start_processes(device: torch.device | None = None) -> Processes:
    """The processes of this training: one, unless `accelerate launch` or torchrun started several.

    device: None for the GPU where there is one. Raises `DreamBoothError` where accelerate is missing or the
    launcher's configuration cannot be read.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Single(device)
    try:
        accelerate = importlib.import_module("accelerate")
        reduce = importlib.import_module("accelerate.utils").reduce
    except ImportError as error:
        raise DreamBoothError(
            "Training on several devices needs the package accelerate. Install it, or start the training without "
            "a launcher, on one."
        ) from error
    on_cpu = not torch.cuda.is_available() if device is None else device.type == "cpu"
    sharding = asked_sharding()
    with _without(_DEEPSPEED):  # sharding needs torch's own process group only
        state = accelerate.PartialState(cpu=on_cpu or is_on(os.environ, "ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    return Several(state, reduce, sharding)


@contextmanager
def _without(variable: str) -> Iterator[None]:
    """Within the block the environment has no such variable."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


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
