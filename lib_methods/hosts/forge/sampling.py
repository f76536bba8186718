"""The seam for Forge and the forks that share its backend; `wrapper` is what stands around the UNet.

What a pass needs on the UNet's patcher is set on a clone of it, which the job has until the pass is over.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import without_overrides
from lib_methods.denoiser import Guide, Hook
from lib_methods.hosts.forge import memory_management
from lib_methods.hosts.forge.editing import ForgeEditing
from lib_methods.hosts.forge.picture import ForgePicture
from lib_methods.hosts.forge.wrapper import ForgeSeam, PassModifier
from lib_methods.hosts.job import JobSampling, seeded

_MODIFIERS = "conditioning_modifiers"
_RESERVED = "steer_reserved"


class ForgeSampling(JobSampling):
    """Implements `lib_methods.denoiser.Sampling`."""

    def __init__(self, p: Any, latent: Tensor | None, noise: Tensor | None = None) -> None:
        super().__init__(p, latent)
        self._noise = noise

    @cached_property
    def editing(self) -> ForgeEditing:
        return ForgeEditing(self, self.seam, self._noise)

    @cached_property
    def picture(self) -> ForgePicture:
        return ForgePicture(self)

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.patcher.model.diffusion_model
        return unet

    @property
    def patcher(self) -> Any:
        """The host's own holder of the UNet, which knows its device and patches."""
        return self.p.sd_model.forge_objects.unet

    def load_unet(self) -> None:
        """Have the UNet on its device, where another model may have taken its place; cheap where it is there."""
        memory_management().load_model_gpu(self.patcher)

    @property
    def seam(self) -> ForgeSeam:
        if not isinstance(self.current.seam, ForgeSeam):
            self.current.seam = ForgeSeam(self.current, self.p.sampler.model_wrap_cfg)
        return self.current.seam

    def add_hook(self, hook: Hook) -> None:
        self.patched()
        super().add_hook(hook)

    def add_guide(self, guide: Guide) -> None:
        self.patched()
        super().add_guide(guide)

    def patched(self) -> Any:
        """The UNet's patcher with this pass on it: a clone. Forge announces the second pass of Hires.fix twice, with a
        fresh UNet the second time."""
        objects, seam = self.p.sd_model.forge_objects, self.seam
        original = objects.unet
        modifiers = original.model_options.get(_MODIFIERS, ())
        if any(isinstance(modifier, PassModifier) and modifier.seam is seam for modifier in modifiers):
            return original
        clone = original.clone()
        others = [m for m in clone.model_options.get(_MODIFIERS, ()) if not isinstance(m, PassModifier)]
        clone.model_options[_MODIFIERS] = [*others, PassModifier(seam)]  # a new list: not every host copies the old one
        objects.unet = clone

        def give_back() -> None:
            if objects.unet is clone:
                objects.unet = original

        self.current.at_end(give_back)
        return clone

    def reserve(self, size: int) -> None:
        patcher = self.patched()
        tell = getattr(patcher, "add_extra_preserved_memory_during_sampling", None)
        if tell is not None:
            # a pass that is announced twice asks twice; others' clones keep both what is reserved and the options
            tell(size - patcher.model_options.get(_RESERVED, 0))
            patcher.model_options[_RESERVED] = size

    @property
    def _predictor(self) -> Any:
        """The host's own object that knows the model's noise schedule."""
        model = self.p.sd_model.forge_objects.unet.model
        return getattr(model, "predictor", None) or getattr(model, "model_sampling", None)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The sampler's. With zero terminal SNR, Classic rescales what DDIM's timesteps mean, and not its predictor."""
        if self.seam.in_alpha_space:
            alphas: Tensor = self.seam.denoiser.inner_model.inner_model.alphas_cumprod
            return alphas
        return 1 / (self._predictor.sigmas.detach().float().cpu() ** 2 + 1)

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        predictor = self._predictor
        if not hasattr(predictor, "noise_scaling"):
            return latents + noise * level.to(latents)
        noisy: Tensor = predictor.noise_scaling(level.flatten()[:1].to(latents), noise.clone(), latents)
        return noisy

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        apply = self.seam.apply
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
        # token merging draws from the global generator: the host's own calls draw as without this one
        with seeded(0, noisy.device), without_overrides(self.unet), torch.no_grad():
            apply(noisy, level.to(noisy.device).expand(count), **arguments)
