"""Apply Guidance to one sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor

from lib_methods.attention import intercept
from lib_methods.denoiser import DenoiserCall, Guidance, LoadedModel, Order, RowChoice, Sampling, Unsupported
from lib_methods.guidance import combine, rescale
from lib_methods.guiders import perturb
from lib_methods.guiders.apg import Momentum, apg
from lib_methods.guiders.mahiro import mahiro
from lib_methods.guiders.mimic import mimic_threshold
from lib_methods.guiders.settings import APG, MAHIRO, MIDDLE, MIMIC, NO_GUIDANCE, SKIMMED, ZERO_STAR, GuidanceSettings
from lib_methods.guiders.skimmed import skim
from lib_methods.guiders.zero_star import cfg_zero_star

NO_LAYERS = "This checkpoint's UNet has no self-attention that can be reached. Set the perturbation scale to 0."
NO_MIDDLE = "This checkpoint's UNet has no self-attention in its middle block. Set Perturbed layers to coarse."


def without_middle(model: LoadedModel) -> str:
    """Why the middle block of this checkpoint cannot be perturbed; empty if it can."""
    return "" if perturb.chosen_layers(model.unet, MIDDLE) else NO_MIDDLE


def attach(sampling: Sampling, settings: GuidanceSettings) -> GuidanceGuide | None:
    """Let Guidance combine a sampling's predictions; returns its part, or None if the settings change nothing.

    Raises `Unsupported` where the layers that are to be perturbed are not there.
    """
    if not settings.active:
        return None
    if settings.perturbs and not perturb.chosen_layers(sampling.unet, settings.perturbed_layers):
        raise Unsupported(NO_MIDDLE if settings.perturbed_layers == MIDDLE else NO_LAYERS)
    guide = GuidanceGuide(sampling, settings)
    sampling.add_guide(guide)
    return guide


class GuidanceGuide:
    """Guidance's part in one sampling. Implements `lib_methods.denoiser.RowGuide`."""

    order = Order.RANGE
    idle = "No step had a CFG scale high enough for these settings to change anything."

    def __init__(self, sampling: Sampling, settings: GuidanceSettings) -> None:
        self.sampling, self.settings = sampling, settings
        self.acted = False
        self._offered: set[str] = set()  # names of the layers that could have been perturbed
        self._perturbed: set[str] = set()  # of those that were
        self._momentum = Momentum(settings.apg_momentum) if settings.apg_momentum else None

    @property
    def missed(self) -> str:
        if self._perturbed == self._offered:
            return ""
        return (
            f"{self.settings.perturbation} reached {len(self._perturbed)} of {len(self._offered)} layers. "
            "Turn off token merging, tiling and other extensions that change self-attention."
        )

    def choose(self, call: DenoiserCall, scale: float) -> RowChoice:
        """Perturbed rows where they are asked for; no unconditional ones where the CFG scale comes out as 1, and they
        would be dropped."""
        without = self._scale(call, scale) == 1 and (self.settings.perturbs or scale > NO_GUIDANCE)
        self.acted = self.acted or (without and scale > NO_GUIDANCE)
        return RowChoice(uncond=not without, perturbed=self.settings.perturbs)

    def _scale(self, call: DenoiserCall, scale: float) -> float:
        """The CFG scale of a call, where the host's is `scale`."""
        if scale <= NO_GUIDANCE or not self.settings.has_interval:
            return scale
        return self.settings.scale_at_sigma(scale, self.sampling.sigma(call.level))

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        """Within the block, self-attention of perturbed rows is made worse."""
        if not self.settings.perturbs:
            yield
            return
        layers = perturb.chosen_layers(self.sampling.unet, self.settings.perturbed_layers)
        self._offered.update(layer.name for layer in layers)
        make = partial(perturb.reader, call=call, sampling=self.sampling, settings=self.settings, seen=self._perturbed)
        with intercept((layer.module, make(layer)) for layer in layers):
            yield

    def guide(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """The combined prediction, led away from perturbed rows, with CFG rescale last. Steps without guidance (CFG
        scale 1, skipped uncond) are left alone otherwise."""
        settings, away, seen = self.settings, guidance.perturbation, guidance
        scale = self._scale(call, guidance.scale)
        if scale != guidance.scale:
            seen = replace(guidance, scale=scale, guided=_kept(guidance, guidance.at(scale)))
        combined = self._combined(call, seen)
        if away is not None:
            combined = combine(combined, away.to(combined.dtype), settings.perturbation_scale)
        if settings.rescale and (scale > NO_GUIDANCE or away is not None):
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
