"""The function wrapper that stands in Forge's `model_options` while a pass runs.

Forge copies the options deeply and keeps some of the copies, so what we put there knows its pass by a weak reference
alone, and lets everything through once that pass is over. The rows' roles come as `cond_or_uncond`: 0 for cond, 1 for
uncond, each entry a block of rows, one per image. Sigmas are handed over unscaled for every sampler.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib_methods.denoiser import Guidance, Role, Row
from lib_methods.hosts.a1111.rows import denoiser_step
from lib_methods.hosts.passes import Pass


class ForgeCall:
    """One run of Forge's UNet; a denoiser call is one or several of them, each with its own rows."""

    def __init__(self, rows: tuple[Row, ...], level: Tensor, step: int) -> None:
        self.rows = self.current_rows = rows
        self.level, self.step = level.detach().flatten()[:1], step


class ForgeSeam:
    """What one pass does in place of Forge's UNet: all hooks around it, and all guides after it."""

    def __init__(self, current: Pass, denoiser: Any) -> None:
        self.current, self.denoiser = current, denoiser
        self.apply: Callable[..., Tensor] | None = None  # the UNet's function while it runs

    def run(self, inner: Callable[..., Tensor], apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        """`inner(apply, arguments)`, which runs the UNet, within all hooks."""
        entries = list(arguments["cond_or_uncond"])
        batch = arguments["input"].shape[0] // max(1, len(entries))
        rows = tuple(Row(Role.UNCOND if entry else Role.COND, image) for entry in entries for image in range(batch))
        call = ForgeCall(rows, arguments["timestep"], denoiser_step(self.denoiser))
        self.apply = apply
        try:
            with self.current.around(call):
                return inner(apply, arguments)
        finally:
            self.apply = None

    def guided(self, arguments: dict[str, Any]) -> Tensor:
        """Ask the guides. The host does not say at what scale it guided, so that is read off the result."""
        guided, cond, base = (arguments[name] for name in ("denoised", "cond_denoised", "uncond_denoised"))
        direction = cond - base
        length = direction.float().pow(2).sum()
        scale = float(((guided - base).float() * direction.float()).sum() / length) if length > 0 else 1.0
        call = ForgeCall((), arguments["sigma"], denoiser_step(self.denoiser))
        return self.current.ask(call, Guidance(cond, base, direction, scale, guided))


class FunctionWrapper:
    """What stands in Forge's `model_options` for a pass, and may be copied: it holds neither job nor model."""

    def __init__(self, seam: ForgeSeam, before: Any) -> None:
        self._seam = weakref.ref(seam)
        self.before = before  # another extension's wrapper

    @property
    def seam(self) -> ForgeSeam | None:
        """The pass it stands for, until that is over."""
        seam = self._seam()
        return None if seam is None or seam.current.is_over else seam

    def __call__(self, apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        seam = self.seam
        return self._inner(apply, arguments) if seam is None else seam.run(self._inner, apply, arguments)

    def _inner(self, apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        if self.before is not None:
            out: Tensor = self.before(apply, arguments)
            return out
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    def after(self, arguments: dict[str, Any]) -> Tensor:
        """What Forge calls after its guidance."""
        seam = self.seam
        denoised: Tensor = arguments["denoised"]
        return denoised if seam is None else seam.guided(arguments)
