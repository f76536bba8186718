"""The seam for Forge and the forks that share its backend.

Forge runs the UNet through `model_options["model_function_wrapper"]`, which gets the rows' roles as `cond_or_uncond`:
0 for cond, 1 for uncond, each entry a block of rows, one per image. The wrapper is set on a clone of the host's UNet
patcher, so nothing stays behind when the sampling ends. Sigmas are handed over unscaled for every sampler. What comes
out of the guidance goes through `model_options["sampler_post_cfg_function"]`, a list, as clean latents.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import without_overrides
from lib_methods.denoiser import Guidance, Guide, Hook, Role, Row, RowPlanner, Unsupported
from lib_methods.hosts.a1111 import A1111Sampling
from lib_methods.hosts.a1111_call import denoiser_step
from lib_methods.hosts.a1111_seam import ask
from lib_methods.hosts.no_editing import NoEditing

_WRAPPER = "model_function_wrapper"
_AFTER = "sampler_post_cfg_function"


class ForgeCall:
    """One run of Forge's UNet; a denoiser call is one or several of them, each with its own rows."""

    def __init__(self, rows: tuple[Row, ...], level: Tensor, step: int) -> None:
        self.rows = self.current_rows = rows
        self.level, self.step = level.detach().flatten()[:1], step


class _Wrapper:
    """What Forge calls in place of the UNet in one pass: all hooks, and the UNet's function while it runs."""

    def __init__(self, p: Any, is_hires: bool, before: Any) -> None:
        self.p, self.is_hires, self.before = p, is_hires, before
        self.hooks: dict[type, Hook] = {}
        self.guides: dict[type, Guide] = {}
        self.apply: Callable[..., Tensor] | None = None

    def __call__(self, apply: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        entries = list(arguments["cond_or_uncond"])
        batch = arguments["input"].shape[0] // max(1, len(entries))
        rows = tuple(Row(Role.UNCOND if entry else Role.COND, image) for entry in entries for image in range(batch))
        call = ForgeCall(rows, arguments["timestep"], denoiser_step(self.p.sampler.model_wrap_cfg))
        self.apply = apply
        try:
            with ExitStack() as stack:
                for hook in self.hooks.values():
                    stack.enter_context(hook.around(call))
                if self.before is not None:
                    return self.before(apply, arguments)
                return apply(arguments["input"], arguments["timestep"], **arguments["c"])
        finally:
            self.apply = None

    def after(self, arguments: dict[str, Any]) -> Tensor:
        """Ask the guides. The host does not say at what scale it guided, so that is read off the result."""
        guided, cond, base = (arguments[name] for name in ("denoised", "cond_denoised", "uncond_denoised"))
        direction = cond - base
        length = direction.float().pow(2).sum()
        scale = float(((guided - base).float() * direction.float()).sum() / length) if length > 0 else 1.0
        call = ForgeCall((), arguments["sigma"], denoiser_step(self.p.sampler.model_wrap_cfg))
        return ask(self.guides.values(), call, Guidance(cond, base, direction, scale, guided))


class ForgeSampling(NoEditing, A1111Sampling):
    """A pass of the sampler in Forge. Implements `lib_methods.denoiser.Sampling`."""

    @property
    def unet(self) -> nn.Module:
        return self.p.sd_model.forge_objects.unet.model.diffusion_model

    @property
    def _wrapper(self) -> _Wrapper | None:
        """The wrapper of this pass, if one is installed."""
        found = self.p.sd_model.forge_objects.unet.model_options.get(_WRAPPER)
        ours = isinstance(found, _Wrapper) and found.p is self.p and found.is_hires == self.is_hires
        return found if ours else None

    def add_hook(self, hook: Hook) -> None:
        """Forge calls `process_before_every_sampling` twice for Hires.fix: the last hook of a class counts."""
        self._own_wrapper().hooks[type(hook)] = hook

    def add_guide(self, guide: Guide) -> None:
        wrapper = self._own_wrapper()
        wrapper.guides[type(guide)] = guide
        options = self.p.sd_model.forge_objects.unet.model_options
        others = [f for f in options.get(_AFTER, []) if not isinstance(getattr(f, "__self__", None), _Wrapper)]
        options[_AFTER] = [*others, wrapper.after]  # a new list: the clone's options share the old one

    def add_planner(self, planner: RowPlanner) -> None:
        raise Unsupported(
            "Forge's denoiser does not let a method choose its rows. Use AUTOMATIC1111's WebUI, or python run.py."
        )

    def _own_wrapper(self) -> _Wrapper:
        wrapper = self._wrapper
        if wrapper is None:
            patched = self.p.sd_model.forge_objects.unet.clone()
            before = patched.model_options.get(_WRAPPER)
            while isinstance(before, _Wrapper):  # the first pass's; the host keeps the patched UNet for the second
                before = before.before
            wrapper = _Wrapper(self.p, self.is_hires, before)
            patched.set_model_unet_function_wrapper(wrapper)
            self.p.sd_model.forge_objects.unet = patched
        return wrapper

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return latents + noise * level.to(latents)

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        apply = self._wrapper.apply if self._wrapper else None
        if apply is None:
            raise RuntimeError("the UNet can be run within a denoiser call only")
        count, empty = len(noisy), self._empty_conditioning()
        arguments: dict[str, Any] = {"transformer_options": {}}
        if isinstance(empty, dict):
            arguments["c_crossattn"] = empty["crossattn"].to(noisy).expand(count, -1, -1)
            arguments["y"] = empty["vector"].to(noisy).expand(count, -1)
        else:
            arguments["c_crossattn"] = empty.to(noisy).expand(count, -1, -1)
        if self._extra_channels() > 0:
            arguments["c_concat"] = self._concat(count, noisy)
        with without_overrides(self.unet), torch.no_grad():
            apply(noisy, level.to(noisy.device).expand(count), **arguments)
