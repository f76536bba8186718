"""A pretend accelerator, for tests on machines without one: tensors that say they are on the device "pretend", compute
on the CPU, and refuse to meet CPU tensors.

    with pretend_device() as device:
        model.to(device, torch.float16); ...

It finds what a CPU alone cannot: a tensor left on the CPU, noise drawn on the wrong device, a dtype that does not fit
half-precision weights, a `.numpy()` without `.cpu()`. It knows nothing of speed, of memory, or of the limits of real
kernels. Needs torch 2.9 or newer. A job queue's thread enters `on_this_thread()`. Gradients work inside both; inside
`torch.utils.checkpoint` the process aborts (seen with torch 2.13).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
# may read one device and write another
CROSSING = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
# take indices on the CPU
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_AUTOCAST = torch.library.Library("_", "IMPL")  # as long as it lives, autocast there casts nothing


class Pretended(torch.Tensor):
    """A CPU tensor (`held`) that says it is on the pretend device."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    """What torch asks of a device; nothing is cast there, and its random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class _Mode(TorchDispatchMode):
    def __enter__(self) -> Any:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...): make it on the CPU, then move it
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _map(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """`change` of every tensor in lists, tuples and dicts; torch's own tree_map takes ten times as long."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_map(change, item) for item in value])
    if isinstance(value, dict):
        return {key: _map(change, item) for key, item in value.items()}
    return value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors: list[torch.Tensor] = []
    _map(tensors.append, (args, kwargs))
    pretended = any(isinstance(x, Pretended) for x in tensors)
    device = kwargs.get("device")
    if pretended and func not in CROSSING:
        for x in tensors:
            index = func in INDEXING and x is not args[0] and not x.is_floating_point()
            if not isinstance(x, Pretended) and x.dim() > 0 and not index:
                raise RuntimeError(f"Expected all tensors on the same device, found {NAME} and {x.device} in {func}")
    if func is aten._fused_sdp_choice.default:
        return 0  # the plain form
    if not pretended and device is None:
        return func(*args, **kwargs)
    there = torch.device(device).type == NAME if device is not None else pretended
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    plain, named = (
        _map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs)) if pretended else (args, kwargs)
    )
    out = func(*plain, **named)
    if not there:
        return out
    wrapped = _map(lambda x: x if isinstance(x, Pretended) else Pretended(x), out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if pretended and _changes(func) else wrapped


@functools.cache
def _changes(func: Any) -> bool:
    """Whether the operation gives a view of its argument, or writes to it."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


@contextlib.contextmanager
def on_this_thread() -> Iterator[None]:
    """The device for a thread other than the one that entered `pretend_device`."""
    with _Mode(), torch.autograd.set_multithreading_enabled(False):
        yield


# at import: autograd counts the devices at the first backward pass of a process, which may be another test's
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
_AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@contextlib.contextmanager
def pretend_device() -> Iterator[torch.device]:
    """The device, for this thread."""
    with on_this_thread():
        yield torch.device(NAME, 0)
