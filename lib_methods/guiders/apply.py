"""Apply dynamic thresholding to one sampling."""

from __future__ import annotations

from torch import Tensor

from lib_methods.denoiser import DenoiserCall, Guidance, Order, Sampling
from lib_methods.guidance import rescale
from lib_methods.guiders.mimic import mimic_threshold
from lib_methods.guiders.settings import NO_GUIDANCE, RESCALE, ThresholdSettings


def attach(sampling: Sampling, settings: ThresholdSettings) -> ThresholdGuide | None:
    """Let dynamic thresholding correct a sampling; returns its part, or None if the settings change nothing."""
    if not settings.active:
        return None
    guide = ThresholdGuide(sampling, settings)
    sampling.add_guide(guide)
    return guide


class ThresholdGuide:
    """Dynamic thresholding's part in one sampling."""

    order = Order.RANGE
    missed = ""
    idle = "No step had a CFG scale high enough for these settings to change anything."

    def __init__(self, sampling: Sampling, settings: ThresholdSettings) -> None:
        self.sampling, self.settings = sampling, settings
        self.acted = False

    def guide(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """The corrected prediction. Steps without guidance (CFG scale 1, skipped uncond) are left alone."""
        corrected = self._corrected(call, guidance)
        self.acted = self.acted or corrected is not guidance.guided
        return corrected

    def _corrected(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        settings, guided = self.settings, guidance.guided
        if guidance.scale <= NO_GUIDANCE:
            return guided
        if settings.method == RESCALE:
            return rescale(guided, guidance.cond, settings.rescale)
        steps = self.sampling.steps
        scale = settings.cfg_scale_at(guidance.scale, call.step, steps)
        mimic = settings.mimic_scale_at(call.step, steps)
        if scale != guidance.scale:  # a difference, so that what others have done to the prediction stays
            guided = guided + (scale - guidance.scale) * guidance.direction
        if not settings.takes_range(scale, mimic):
            return guided
        return mimic_threshold(
            guided,
            guidance.at(mimic),
            share=settings.threshold_percentile / 100,
            separate_channels=settings.separate_feature_channels,
            startpoint=settings.scaling_startpoint,
            variability=settings.variability_measure,
            phi=settings.interpolate_phi,
        )
