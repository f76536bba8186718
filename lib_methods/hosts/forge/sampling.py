"""The seam for Forge and the forks that share its backend.

Hooks run around the UNet through `model_options["model_function_wrapper"]`, which is set on a clone of the host's UNet
patcher. Guides change what comes out of the guidance through `model_options["sampler_post_cfg_function"]`, a list, as
clean latents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import without_overrides
from lib_methods.denoiser import Guide, Hook
from lib_methods.hosts.forge.picture import ForgePicture
from lib_methods.hosts.forge.wrapper import ForgeSeam, FunctionWrapper
from lib_methods.hosts.job import JobSampling

_WRAPPER = "model_function_wrapper"
AFTER = "sampler_post_cfg_function"


class ForgeSampling(JobSampling):
    """Implements `lib_methods.denoiser.Sampling`."""

    editing = None

    @cached_property
    def picture(self) -> ForgePicture:
        return ForgePicture(self)

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
        self.wrapped()
        super().add_hook(hook)

    def add_guide(self, guide: Guide) -> None:
        wrapper = self.wrapped()
        super().add_guide(guide)
        self.listen(AFTER, wrapper.after)

    def listen(self, key: str, function: Callable[..., Any]) -> None:
        """Have the host call a method of this pass's wrapper, where it keeps a list of functions."""
        options = self.p.sd_model.forge_objects.unet.model_options
        others = [f for f in options.get(key, []) if not isinstance(getattr(f, "__self__", None), FunctionWrapper)]
        options[key] = [*others, function]  # a new list: the clone's options share the old one

    def wrapped(self) -> FunctionWrapper:
        """This pass's wrapper, on a clone of the UNet. Forge announces the second pass of Hires.fix twice, with a fresh
        UNet the second time."""
        before = self.p.sd_model.forge_objects.unet.model_options.get(_WRAPPER)
        if isinstance(before, FunctionWrapper) and before.seam is self._seam:
            return before
        patched = self.p.sd_model.forge_objects.unet.clone()
        before = patched.model_options.get(_WRAPPER)
        while isinstance(before, FunctionWrapper):  # the first pass's; the host keeps the patched UNet for the second
            before = before.before
        wrapper = FunctionWrapper(self._seam, before)
        patched.set_model_unet_function_wrapper(wrapper)
        self.p.sd_model.forge_objects.unet = patched
        return wrapper

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
