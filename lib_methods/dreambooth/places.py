"""Where the parts of a model are: on the device only while they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

CPU = torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first weight."""
    return next(module.parameters()).device


@contextmanager
def brought(device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Within the block the modules are on `device`; after it where each was before."""
    homes = [device_of(module) for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, home in zip(modules, homes):
            module.to(home)
        if any(home != device for home in homes):
            release_memory(device)


def computing(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Within the block the layers compute in `dtype` whatever their weights are; None: in the weights' own."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: each kind of device has an error of its own for that."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


def release_memory(device: torch.device) -> None:
    """Gives what the device's allocator holds for later back to the other programs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
