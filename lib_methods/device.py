"""A device: its memory, its precision, what tensors take there, and how to make it repeat its results."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GIB = 2**30
CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_memory(device: torch.device) -> int | None:
    """The bytes that are free there; None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return int(torch.mps.recommended_max_memory())
    return None


def half_precision(device: torch.device) -> str:
    """What the device computes quickly in: "bf16", "fp16" or "fp32"."""
    if device.type != "cuda":
        return "fp32"
    # torch says yes for cards, too, that only imitate bfloat16
    if torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16"
    return "fp16"


def release_memory(device: torch.device) -> None:
    """Gives what the device's allocator holds for later back to the other programs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_words(device: torch.device) -> str:
    """What people call the device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "the CPU" if device.type == "cpu" else f"the {device.type} device"


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


class LiveBytes(TorchDispatchMode):
    """Within the block: the bytes of the tensors that live, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def see(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage until it goes; views share one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is storage:
            return tensor

        def gone(_: object) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):  # the usual case, without the tree's cost
            return self.see(out)
        tree_map_only(Tensor, self.see, out)
        return out
