"""Moves the parts of a model: on the device only while they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from lib_methods.dreambooth.model.model import TrainingModel

CPU = torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first weight."""
    return next(module.parameters()).device


@contextmanager
def brought(device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Within the block the modules are on `device`; after it where each was before, even if one never got there."""
    homes = [device_of(module) for module in modules]
    with ExitStack() as stack:
        stack.callback(_release, device, homes)
        for module, home in zip(modules, homes):
            stack.callback(module.to, home)  # before it moves: memory may end in the middle of a module
            module.to(device)
        _release(device, homes)
        yield


class Parts:
    """Brings a model's parts to the UNet's device when they are needed: beside the UNet, or one part at a time.

    One at a time the others are on the CPU meanwhile, the UNet too, which takes seconds there and back for SDXL's 4.8
    GiB. Numbers do not depend on it: everything is computed on the device. After each block all parts are where they
    were before it, also after an exception.

    dtype: what is computed in, None for the weights' own precision. follow: called when parts have moved, for a LoRA
    that must come along. movable: False where the UNet cannot leave, as its weights are spread over several devices;
    then it is never one at a time.
    """

    def __init__(
        self,
        model: TrainingModel,
        *,
        one_at_a_time: bool = False,
        dtype: torch.dtype | None = None,
        follow: Callable[[], object] | None = None,
        movable: bool = True,
    ) -> None:
        self.model, self.dtype, self.follow, self.movable = model, dtype, follow or _nothing, movable
        self.one_at_a_time = one_at_a_time and movable
        self.device = device_of(model.unet)

    @contextmanager
    def only(self, *modules: nn.Module) -> Iterator[None]:
        """Within the block these of the model's parts are on the device, one at a time nothing else is."""
        unet = self.model.unet
        here, away = [module for module in modules if module is not unet], []
        if self.one_at_a_time:
            here = list(modules)
            away = [part for part in (unet, self.model.vae, *self.model.encoders) if part not in here]
        with ExitStack() as stack:
            stack.callback(self.follow)
            stack.enter_context(brought(CPU, *away))
            stack.enter_context(brought(self.device, *here))
            self.follow()
            yield

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """Within the block texts can be embedded."""
        with self.only(*self.model.encoders), computing(self.device, self.dtype):
            yield

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """Within the block the UNet can be asked."""
        with self.only(self.model.unet), computing(self.device, self.dtype):
            yield

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within the block latents can be decoded."""
        with self.only(self.model.vae), computing(self.device, self.dtype):
            yield

    def spare(self) -> bool:
        """One part at a time from here on, for memory was short; False where that is so already or cannot help."""
        if self.one_at_a_time or not self.movable or self.device == CPU:
            return False
        self.one_at_a_time = True
        return True


def computing(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Within the block the layers compute in `dtype` whatever their weights are; None: in the weights' own."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def release_memory(device: torch.device) -> None:
    """Gives what the device's allocator holds for later back to the other programs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_words(device: torch.device) -> str:
    """What people call the device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "the CPU" if device.type == "cpu" else f"the {device.type} device"


def _release(device: torch.device, homes: Sequence[torch.device]) -> None:
    """Gives back what modules have left on `device` and on their other places."""
    for place in {device, *homes} if any(home != device for home in homes) else ():
        release_memory(place)


def wait_for(out: torch.Tensor) -> None:
    """Until `out` is computed: a GPU is asked for one of its numbers."""
    out.flatten()[:1].tolist()


def _nothing() -> None:
    """Nothing else needs to move."""


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within the block the same input gives the same numbers, on a GPU too, where its kernels can."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    options: Any = getattr(torch.utils, "deterministic", None)  # not in torch 2.1
    filled = getattr(options, "fill_uninitialized_memory", False)
    if options is not None:
        options.fill_uninitialized_memory = False  # costs time, and no kernel here reads what it did not write
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if options is not None:
            options.fill_uninitialized_memory = filled
