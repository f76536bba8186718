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

from lib_methods.denoiser import Guidance, Needs, Role, Row, RowPlan, sees_picture
from lib_methods.hosts.a1111.rows import denoiser_step
from lib_methods.hosts.forge.rows import NegativePrompt, PlannedRows
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
        self.negative: NegativePrompt | None = None
        self.planned: PlannedRows | None = None  # of this denoiser call, where a method chooses the rows

    def run(self, inner: Callable[..., Tensor], apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        """`inner(apply, arguments)`, which runs the UNet, within all hooks."""
        entries = list(arguments["cond_or_uncond"])
        batch = arguments["input"].shape[0] // max(1, len(entries))
        rows = tuple(Row(Role.UNCOND if entry else Role.COND, image) for entry in entries for image in range(batch))
        rows = rows if self.planned is None else self.planned.rows(batch) or rows
        call = ForgeCall(rows, arguments["timestep"], denoiser_step(self.denoiser))
        self.apply = apply
        try:
            with self.current.around(call):
                out = inner(apply, arguments)
        finally:
            self.apply = None
        if self.planned is not None:
            self.planned.keep(out)
        return out

    def conditions(self, *given: Any) -> tuple[Any, ...]:
        """Put a method's rows in the place of the host's, at the start of a denoiser call."""
        model, x, timestep, uncond, cond, cond_scale, options, seed = given
        self.planned, planner = None, self.current.planner
        if planner is None or not sees_picture(model.diffusion_model, x.shape[1]):
            return given
        weight = float(sum(entry.get("strength", 1.0) for entry in cond))
        needs = Needs(abs(weight - 1) < 1e-6, bool(self.current.guides), self._needs_empty)
        call = ForgeCall((), timestep, denoiser_step(self.denoiser))
        plan = planner.plan(call, float(cond_scale), needs)
        if self._is_skipped(cond_scale):
            plan = RowPlan(1.0, 1.0, False, False)
        elif uncond is None and self.negative is not None:
            uncond = [self.negative.entry(cond[0], int(self.denoiser.step))]
        self.planned = PlannedRows(planner, plan, weight)
        cond, uncond = self.planned.entries(cond, uncond or [], x)
        if uncond is not None:
            options = {**options, "disable_cfg1_optimization": True}  # else the host leaves them out at scale 1
        return model, x, timestep, uncond, cond, plan.text_scale, options, seed

    @property
    def _needs_empty(self) -> bool:
        return bool(getattr(self.denoiser, "need_last_noise_uncond", False))

    def _is_skipped(self, cond_scale: float) -> bool:
        """Whether the host leaves out the unconditional rows of this call (NGMS, "skip early CFG")."""
        p = self.denoiser.p
        return cond_scale == 1.0 and (p.hr_cfg if getattr(p, "is_hr_pass", False) else p.cfg_scale) != 1.0

    def guided(self, arguments: dict[str, Any]) -> Tensor:
        """Ask the guides. The host does not say at what scale it guided, so that is read off the result."""
        guided, cond, base = (arguments[name] for name in ("denoised", "cond_denoised", "uncond_denoised"))
        call = ForgeCall((), arguments["sigma"], denoiser_step(self.denoiser))
        if self.planned is not None:
            empty, guidance = self.planned.found.get("empty"), self.planned.guidance(cond, guided)
            if self._needs_empty and empty is not None:
                base.copy_(empty)  # the sampler continues with e(0, 0)
            return guided if guidance is None else self.current.ask(call, guidance)
        direction = cond - base
        length = direction.float().pow(2).sum()
        scale = float(((guided - base).float() * direction.float()).sum() / length) if length > 0 else 1.0
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

    def conditions(self, *arguments: Any) -> tuple[Any, ...]:
        """What Forge calls before it runs any row."""
        seam = self.seam
        return arguments if seam is None else seam.conditions(*arguments)

    def after(self, arguments: dict[str, Any]) -> Tensor:
        """What Forge calls after its guidance."""
        seam = self.seam
        denoised: Tensor = arguments["denoised"]
        return denoised if seam is None else seam.guided(arguments)
