"""What a pass puts between Forge's sampler and its UNet.

All that stands on the UNet's patcher is one `conditioning_modifier`, which Forge asks at the start of every denoiser
call. It puts the rest into the options of that call alone: the function wrapper around the UNet, outside of whatever
wrapper another extension has set by then, and the last `sampler_post_cfg_function`. Forge copies the patcher's options
deeply and keeps some of the copies, so the modifier knows its pass by a weak reference alone, and lets everything
through once that pass is over.

The rows' roles come as `cond_or_uncond`: 0 for cond, 1 for uncond, each entry a block of rows, one per image. Sigmas
are passed unscaled for every sampler.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib_methods.denoiser import Guidance, Needs, Role, Row, RowChoice, RowPlan, sees_picture
from lib_methods.denoiser.levels import Levels
from lib_methods.hosts.a1111.rows import denoiser_step
from lib_methods.hosts.forge import prediction
from lib_methods.hosts.forge.rows import NegativePrompt, PlannedRows
from lib_methods.hosts.passes import Pass, put_back

_WRAPPER = "model_function_wrapper"
_FORMULA = "sampler_cfg_function"
_AFTER = "sampler_post_cfg_function"
_BEFORE = "sampler_pre_cfg_function"
_KEEP_UNCOND = "disable_cfg1_optimization"


class ForgeCall:
    """One run of Forge's UNet, with the rows in it; a denoiser call is one or several of them."""

    def __init__(self, rows: tuple[Row, ...], level: Tensor, denoiser: Any, in_timesteps: bool = False) -> None:
        self.rows = rows
        self.current_rows: tuple[Row, ...] = ()
        self.level, self.step = level.detach().flatten()[:1], denoiser_step(denoiser)
        self.index = int(denoiser.step)  # of the denoiser call in its sampling, from 0
        self.in_timesteps = in_timesteps

    def enter_unet(self, count: int) -> None:
        """The UNet starts on so many rows: all, or those of several tiles of the image (MultiDiffusion), one tile
        after the other; of rows laid out otherwise nothing is known."""
        tiles, rest = divmod(count, max(1, len(self.rows)))
        self.current_rows = () if rest else self.rows * tiles


class ForgeSeam:
    """What one pass does in place of Forge's UNet: all hooks around it, and all guides after it."""

    def __init__(self, current: Pass, denoiser: Any) -> None:
        self.current, self.denoiser = current, denoiser
        self.apply: Callable[..., Tensor] | None = None  # the UNet's function while it runs
        self.scale = 1.0  # the CFG scale of this denoiser call
        self.negative: NegativePrompt | None = None
        self.planned: PlannedRows | None = None  # of this denoiser call, where a method chooses the rows
        self.is_summed = False  # both predictions of this call are there; others may run the UNet once more
        self.choice = RowChoice()  # of this call
        self.perturbs = False  # the rows in the UNet are perturbed ones
        self.negative_text: Tensor | None = None  # of this call
        self.edit: Callable[[ForgeCall, Tensor], None] | None = None
        self.edited: Tensor | None = None  # the sampler's own latents, where an inpainting mask hides them
        self._original, before = denoiser.forward, vars(denoiser).get("forward")
        denoiser.forward = self.forward
        current.at_end(put_back, denoiser, "forward", self.forward, before)

    @property
    def in_alpha_space(self) -> bool:
        return bool(getattr(self.denoiser, "classic_ddim_eps_estimation", False))

    def sigma(self, call: ForgeCall, levels: Levels) -> float:
        level = float(call.level.item())
        return levels.sigma(level) if call.in_timesteps else level

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In the place of the denoiser's, which is handed the sampler's own tensor."""
        if (edit := self.edit) is not None and not self.current.is_over:
            call = ForgeCall((), sigma, self.denoiser, self.in_alpha_space)
            self.current.guarded(lambda: edit(call, x))
            if getattr(self.denoiser, "mask", None) is not None:
                self.edited = x
        try:
            return self._original(x, sigma, *args, **kwargs)
        finally:
            self.edited = None

    def begin(self, *given: Any) -> tuple[Any, ...]:
        """The arguments of a denoiser call with the method's rows, where one chooses them, and with this pass around
        the UNet and after the guidance."""
        model, x, sigma, *others = given
        if self.edited is not None:  # the host has put other noise where its mask keeps the image
            x = self.edited.to(x)
            if self.in_alpha_space:
                x = x * (1 + sigma.view(-1, 1, 1, 1) ** 2) ** 0.5
        *rest, self.scale, options, seed = self.current.guarded(lambda: self.conditions(model, x, sigma, *others))
        self.is_summed, self.negative_text = False, rest[3][0].get("cross_attn") if rest[3] else None
        inner = partial(self.run, options.get(_WRAPPER))
        options = {**options, _WRAPPER: inner, _AFTER: [self.summed, *options.get(_AFTER, ()), self.guided]}
        return (*rest, self.scale, options, seed)

    def run(self, inner: Any, apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        """Run the UNet within all hooks. inner: another extension's function wrapper, or None."""
        entries = list(arguments["cond_or_uncond"])
        if self.is_summed and not self.perturbs and self._is_negative(arguments["c"].get("c_crossattn")):
            entries = [1] * len(entries)  # SAG hands the uncond rows over as cond rows
        batch = arguments["input"].shape[0] // max(1, len(entries))
        rows = tuple(Row(Role.UNCOND if entry else Role.COND, image) for entry in entries for image in range(batch))
        rows = rows if self.planned is None else self.planned.rows(batch) or rows
        if self.perturbs:
            rows = tuple(replace(row, perturbed=True) for row in rows)

        def run() -> Tensor:
            call = ForgeCall(rows, arguments["timestep"], self.denoiser)

            def counted(x: Tensor, timestep: Tensor, **c: Any) -> Tensor:
                call.enter_unet(len(x))
                try:
                    return apply(x, timestep, **c)
                finally:
                    call.current_rows = ()

            self.apply = apply
            try:
                with self.current.around(call):
                    if inner is None:
                        return counted(arguments["input"], arguments["timestep"], **arguments["c"])
                    out: Tensor = inner(counted, arguments)
                    return out
            finally:
                self.apply = None

        out = self.current.guarded(run)
        if self.planned is not None:
            self.planned.keep(out)
        return out

    def _is_negative(self, text: Tensor | None) -> bool:
        negative = self.negative_text
        if text is None or negative is None or text.shape[1:] != negative.shape[1:]:
            return False
        return torch.equal(text[:1], negative[:1].to(text))

    def summed(self, arguments: dict[str, Any]) -> Tensor:
        """The first to be called after the guidance; changes nothing."""
        self.is_summed = True
        denoised: Tensor = arguments["denoised"]
        return denoised

    def conditions(self, *given: Any) -> tuple[Any, ...]:
        """The arguments of a denoiser call with a method's rows in the place of the host's."""
        model, x, timestep, uncond, cond, cond_scale, options, seed = given
        self.planned, planner = None, self.current.planner
        call = ForgeCall((), timestep, self.denoiser)
        self.choice = self.current.choose(call, float(cond_scale))
        weight = _weight(cond)
        if planner is None or not sees_picture(model.diffusion_model, x.shape[1]):
            others = any(options.get(name) for name in (_FORMULA, _BEFORE, _AFTER, _KEEP_UNCOND))
            if self.choice.uncond or others or self._needs_empty or abs(weight - 1) > 1e-6:
                return given
            return model, x, timestep, uncond, cond, 1.0, options, seed  # where the host leaves the uncond rows out
        formula = options.get(_FORMULA)
        needs = Needs(abs(weight - 1) < 1e-6, bool(self.current.guides) or formula is not None, self._needs_empty)
        plan = planner.plan(call, float(cond_scale), needs)
        if self._is_skipped(cond_scale):
            plan = RowPlan(1.0, 1.0, False, False)
        elif uncond is None and self.negative is not None:
            uncond = [self.negative.entry(cond[0], int(self.denoiser.step))]
        self.planned = PlannedRows(planner, plan, weight, self._needs_empty)
        cond, uncond = self.planned.entries(cond, uncond or [], x)
        options = {**options, _FORMULA: partial(self.planned.summed, formula)}
        options[_KEEP_UNCOND] = True  # else the host leaves the uncond rows out at scale 1
        return model, x, timestep, uncond, cond, plan.text_scale, options, seed

    @property
    def _needs_empty(self) -> bool:
        return bool(getattr(self.denoiser, "need_last_noise_uncond", False))

    def _is_skipped(self, cond_scale: float) -> bool:
        """Whether the host leaves out the unconditional rows of this call (NGMS, "skip early CFG")."""
        p = self.denoiser.p
        asked = getattr(p, "hr_cfg", p.cfg_scale) if getattr(p, "is_hr_pass", False) else p.cfg_scale
        return cond_scale == 1.0 and asked != 1.0

    def guided(self, arguments: dict[str, Any]) -> Tensor:
        """Ask the guides. Without unconditional rows the host passes zeros, and there is no guidance."""
        guided, cond, base = (arguments[name] for name in ("denoised", "cond_denoised", "uncond_denoised"))
        call = ForgeCall((), arguments["sigma"], self.denoiser)
        if not self.current.guides and self.planned is None:
            return guided
        away = self.current.guarded(lambda: self._perturbation(arguments))
        if self.planned is not None and self.planned.guidance is not None:
            return self.current.ask(call, replace(self.planned.guidance, guided=guided, perturbation=away))
        if not self.current.guides:
            return guided
        if base is None or not base.any():
            return self.current.ask(call, Guidance(cond, cond, torch.zeros_like(cond), 1.0, guided, away))
        direction, weight = cond - base, _weight(arguments.get("cond") or [{}])
        if weight != 1.0:  # under AND the host passes a mean
            direction = direction * weight
            cond = base + direction
        scale = float(arguments.get("cond_scale", self.scale))
        return self.current.ask(call, Guidance(cond, base, direction, scale, guided, away))

    def _perturbation(self, arguments: dict[str, Any]) -> Tensor | None:
        """What perturbed rows lack, weighted as their prompts are; the host runs all conditions once more."""
        if not self.choice.perturbed or not self.current.guides:
            return None
        cond, model, x, sigma, options = (
            arguments[name] for name in ("cond", "model", "input", "sigma", "model_options")
        )
        self.perturbs = True
        try:
            found: Tensor = prediction().calc_cond_uncond_batch(model, cond, None, x, sigma, options)[0]
        finally:
            self.perturbs = False
        return (arguments["cond_denoised"] - found) * _weight(cond)


def _weight(cond: list[dict[str, Any]]) -> float:
    """Of all conditions under AND together."""
    return float(sum(entry.get("strength", 1.0) for entry in cond))


class PassModifier:
    """What stands in Forge's `conditioning_modifiers` for a pass, and may be copied: it holds neither job nor model."""

    def __init__(self, seam: ForgeSeam) -> None:
        self._seam = weakref.ref(seam)

    @property
    def seam(self) -> ForgeSeam | None:
        """The pass it stands for, until that is over."""
        seam = self._seam()
        return None if seam is None or seam.current.is_over else seam

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        seam = self.seam
        return arguments if seam is None else seam.begin(*arguments)
