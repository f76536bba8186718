"""Put a function in front of a layer's `forward` for a while.

The override lives on the instance, inside a `with`. It may be nested and combined with overrides of other extensions
in any
order: ours becomes a plain pass-through as soon as its block is left, even if somebody else still holds a reference
to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

Original = Callable[..., Any]


class Replacement(Protocol):
    """What stands in for `forward`: gets the original, the hidden states and whatever else the host passes."""

    def __call__(self, original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any: ...


class _Override:
    def __init__(self, module: nn.Module, replacement: Replacement) -> None:
        self.module, self.replacement, self.active = module, replacement, False
        self.original: Original = module.forward
        self.was_on_instance = "forward" in module.__dict__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active or not args:
            return self.original(*args, **kwargs)
        return self.replacement(self.original, *args, **kwargs)

    def enter(self) -> None:
        self.active = True
        self.module.__dict__["forward"] = self

    def leave(self) -> None:
        self.active = False
        if self.module.__dict__.get("forward") is not self:
            return  # somebody wrapped us and has not left yet; we pass through from now on
        if self.was_on_instance:
            self.module.__dict__["forward"] = self.original
        else:
            del self.module.__dict__["forward"]


@contextmanager
def intercept(pairs: Iterable[tuple[nn.Module, Replacement]]) -> Iterator[None]:
    """Within the block, each module's `forward` is its replacement. Always undone, also after an exception half-way
    through."""
    entered: list[_Override] = []
    try:
        for module, replacement in pairs:
            override = _Override(module, replacement)
            override.enter()
            entered.append(override)
        yield
    finally:
        for override in reversed(entered):
            override.leave()


@contextmanager
def without_overrides(module: nn.Module) -> Iterator[None]:
    """Within the block, the module runs the `forward` of its class, without what extensions put in front of it."""
    override = module.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if override is not None:
            module.__dict__["forward"] = override
