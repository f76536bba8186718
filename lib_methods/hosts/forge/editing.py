"""Editing in Forge and its forks: as in AUTOMATIC1111's WebUI, but for how the model is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib_methods.denoiser import NO_FLOW, Conditioning, Unsupported
from lib_methods.hosts.a1111 import start
from lib_methods.hosts.a1111.editing import A1111Editing
from lib_methods.hosts.a1111.start import Start
from lib_methods.hosts.forge.picture import predicts_flow
from lib_methods.hosts.job import seeded

if TYPE_CHECKING:
    from lib_methods.hosts.forge.sampling import ForgeSampling

# samplers that continue from the tensor which they hand to the model, and call it once a step, or as they say
_KNOWN = frozenset(
    "ddim plms restart_sampler sample_dpm_2 sample_dpm_2_ancestral sample_dpmpp_2m sample_dpmpp_2m_sde "
    "sample_dpmpp_2s_ancestral sample_dpmpp_3m_sde sample_dpmpp_sde sample_er_sde sample_euler "
    "sample_euler_ancestral sample_heun sample_lcm sample_lms sample_res_multistep".split()
)


def obstacle_of(sampler: Any, steps: int) -> str:
    """As in `hosts.a1111.start`."""
    if getattr(sampler.func, "__name__", "") in _KNOWN:
        return start.obstacle_of(sampler, steps)
    name = getattr(getattr(sampler, "config", None), "name", "of this job")
    return (
        f'The sampler "{name}" does not let an extension change its latents here. '
        "Choose Euler, Euler a, DPM++ 2M or DDIM."
    )


class ForgeEditing(A1111Editing):
    """Implements `lib_methods.denoiser.Editing`."""

    job: ForgeSampling

    def _start(self) -> Start:
        # the host has no sampler any more once the second pass of Hires.fix is over
        if self._known_start is None and getattr(self.p.sampler.func, "__name__", "") not in _KNOWN:
            raise Unsupported(obstacle_of(self.p.sampler, 0))
        if predicts_flow(self.job.patcher.model):
            raise Unsupported(NO_FLOW)
        return super()._start()

    def tokenize(self, text: str) -> list[int]:
        model = self.p.sd_model
        names = ("text_processing_engine", "text_processing_engine_l", "cond_stage_model")
        engines = (getattr(model, name, None) for name in names)
        engine = next((engine for engine in engines if hasattr(engine, "tokenize")), None)
        return self.tokens_of(engine, text) if engine is not None else super().tokenize(text)

    def predict(self, x: Tensor, sigma: float, cond: Conditioning, gradients: bool = False) -> Tensor:
        self.job.load_unet()
        with seeded(
            0, x.device
        ):  # token merging draws: an inversion is the same each time, and the host's calls are, too
            return super().predict(x, sigma, cond, gradients)

    def _denoised(self, x: Tensor, sigma: float, cond: Conditioning) -> Tensor:
        count = len(x)
        told: dict[str, Any] = {"c_crossattn": cond.context.to(x.device).expand(count, -1, -1)}
        if cond.vector is not None:
            told["y"] = cond.vector.to(x.device).expand(count, -1)
        if self.job.extra_channels() > 0:
            told["c_concat"] = self.job.beside(count, x, cond.image)
        options = dict(self.job.patcher.model_options.get("transformer_options", {}))
        level = torch.full((count,), sigma, dtype=torch.float32, device=x.device)
        denoised: Tensor = self.job.patcher.model.apply_model(x, level, transformer_options=options, **told)
        return denoised
