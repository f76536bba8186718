"""Apply Guidance to one sampling."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lib_methods.denoiser import DenoiserCall, Guidance, Order, Sampling
from lib_methods.guidance import rescale
from lib_methods.guiders.combine import Momentum, apg, cfg_zero_star, mahiro, skim
from lib_methods.guiders.mimic import mimic_threshold
from lib_methods.guiders.settings import APG, MAHIRO, MIMIC, NO_GUIDANCE, SKIMMED, ZERO_STAR, GuidanceSettings


def attach(sampling: Sampling, settings: GuidanceSettings) -> GuidanceGuide | None:
    """Let Guidance combine a sampling's predictions; returns its part, or None if the settings change nothing."""
    if not settings.active:
        return None
    guide = GuidanceGuide(sampling, settings)
    sampling.add_guide(guide)
    return guide


class GuidanceGuide:
    """Guidance's part in one sampling."""

    order = Order.RANGE
    missed = ""
    idle = "No step had a CFG scale high enough for these settings to change anything."

    def __init__(self, sampling: Sampling, settings: GuidanceSettings) -> None:
        self.sampling, self.settings = sampling, settings
        self.acted = False
        self._momentum = Momentum(settings.apg_momentum) if settings.apg_momentum else None

    def guide(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """The combined prediction. Steps without guidance (CFG scale 1, skipped uncond) are left alone."""
        if guidance.scale <= NO_GUIDANCE:
            return guidance.guided
        settings, seen = self.settings, guidance
        if settings.has_interval:
            scale = settings.scale_at_sigma(guidance.scale, self.sampling.sigma(call.level))
            if scale != guidance.scale:
                seen = replace(guidance, scale=scale, guided=_kept(guidance, guidance.at(scale)))
        combined = self._combined(call, seen)
        if settings.rescale and seen.scale > NO_GUIDANCE:
            combined = rescale(combined, guidance.cond, settings.rescale)
        self.acted = self.acted or combined is not guidance.guided
        return combined

    def _combined(self, call: DenoiserCall, seen: Guidance) -> Tensor:
        settings, base, direction, scale = self.settings, seen.base, seen.direction, seen.scale
        if scale <= NO_GUIDANCE or not settings.combines_at(scale):
            return seen.guided
        if settings.method == MIMIC:
            return self._mimicked(call, seen)
        if settings.method == SKIMMED:
            return _kept(seen, skim(base, direction, scale, settings.skimming_scale))
        if settings.method == APG:
            limits = {"eta": settings.apg_eta, "norm": settings.apg_norm}
            return _kept(seen, apg(base, direction, scale, **limits, momentum=self._momentum))
        formula = {ZERO_STAR: cfg_zero_star, MAHIRO: mahiro}[settings.method]
        return _kept(seen, formula(base, direction, scale))

    def _mimicked(self, call: DenoiserCall, seen: Guidance) -> Tensor:
        settings, guided, steps = self.settings, seen.guided, self.sampling.steps
        scale = settings.cfg_scale_at(seen.scale, call.step, steps)
        mimic = settings.mimic_scale_at(call.step, steps)
        if scale != seen.scale:  # a difference, so that what others have done to the prediction stays
            guided = guided + (scale - seen.scale) * seen.direction
        if not settings.takes_range(scale, mimic):
            return guided
        return mimic_threshold(
            guided,
            seen.at(mimic),
            share=settings.threshold_percentile / 100,
            separate_channels=settings.separate_feature_channels,
            startpoint=settings.scaling_startpoint,
            variability=settings.variability_measure,
            phi=settings.interpolate_phi,
        )


def _kept(guidance: Guidance, combined: Tensor) -> Tensor:
    """Our combined prediction, plus what other methods and extensions changed in the guided one."""
    return combined + (guidance.guided - guidance.at(guidance.scale))
