"""The seam for Forge and the forks that share its backend.

Forge runs the UNet through `model_options["model_function_wrapper"]`, which gets the rows' roles as `cond_or_uncond`:
0 for cond, 1 for uncond, each entry a block of rows, one per image. The wrapper is set on a clone of the host's UNet
patcher and lets everything through once its pass is over. Forge copies the options deeply and keeps some of the copies,
so what we put there knows its pass by a weak reference alone. Sigmas are handed over unscaled for every sampler. What
comes out of the guidance goes through `model_options["sampler_post_cfg_function"]`, a list, as clean latents.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import without_overrides
from lib_methods.denoiser import Guidance, Guide, Hook, Role, Row
from lib_methods.hosts.a1111.rows import denoiser_step
from lib_methods.hosts.job import JobSampling
from lib_methods.hosts.passes import Pass

_WRAPPER = "model_function_wrapper"
_AFTER = "sampler_post_cfg_function"


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


class _Door:
    """What stands in Forge's `model_options` for a pass, and may be copied: it holds neither job nor model."""

    def __init__(self, seam: ForgeSeam, before: Any) -> None:
        self._seam = weakref.ref(seam)
        self.before = before  # another extension's wrapper

    @property
    def seam(self) -> ForgeSeam | None:
        """Who is behind it, until the pass is over."""
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


class ForgeSampling(JobSampling):
    """Implements `lib_methods.denoiser.Sampling`."""

    picture = None
    editing = None

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.p.sd_model.forge_objects.unet.model.diffusion_model
        return unet

    @property
    def _seam(self) -> ForgeSeam:
        if not isinstance(self.current.seam, ForgeSeam):
            self.current.seam = ForgeSeam(self.current, self.p.sampler.model_wrap_cfg)
        return self.current.seam

    def add_hook(self, hook: Hook) -> None:
        self._open_door()
        super().add_hook(hook)

    def add_guide(self, guide: Guide) -> None:
        door = self._open_door()
        super().add_guide(guide)
        options = self.p.sd_model.forge_objects.unet.model_options
        others = [f for f in options.get(_AFTER, []) if not isinstance(getattr(f, "__self__", None), _Door)]
        options[_AFTER] = [*others, door.after]  # a new list: the clone's options share the old one

    def _open_door(self) -> _Door:
        """This pass's door, on a clone of the UNet. Forge announces the second pass of Hires.fix twice, with a fresh
        UNet the second time."""
        before = self.p.sd_model.forge_objects.unet.model_options.get(_WRAPPER)
        if isinstance(before, _Door) and before.seam is self._seam:
            return before
        patched = self.p.sd_model.forge_objects.unet.clone()
        before = patched.model_options.get(_WRAPPER)
        while isinstance(before, _Door):  # the first pass's; the host keeps the patched UNet for the second
            before = before.before
        door = _Door(self._seam, before)
        patched.set_model_unet_function_wrapper(door)
        self.p.sd_model.forge_objects.unet = patched
        return door

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return latents + noise * level.to(latents)

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        apply = self._seam.apply
        if apply is None:
            raise RuntimeError("the UNet can be run within a denoiser call only")
        count, empty = len(noisy), self.empty_prompt()
        arguments: dict[str, Any] = {"transformer_options": {}}
        if isinstance(empty, dict):
            arguments["c_crossattn"] = empty["crossattn"].to(noisy).expand(count, -1, -1)
            arguments["y"] = empty["vector"].to(noisy).expand(count, -1)
        else:
            arguments["c_crossattn"] = empty.to(noisy).expand(count, -1, -1)
        if self.extra_channels() > 0:
            arguments["c_concat"] = self.no_picture(count, noisy)
        with without_overrides(self.unet), torch.no_grad():
            apply(noisy, level.to(noisy.device).expand(count), **arguments)
