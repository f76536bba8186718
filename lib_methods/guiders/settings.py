"""Settings of Guidance: one validated, immutable object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_methods.guiders.mimic import SCHEDULES, STARTPOINTS, VALUED_SCHEDULES, VARIABILITIES, scheduled
from lib_methods.webui.controls import Old, check, checkbox, dropdown, radio, slider
from lib_methods.webui.former import Former
from lib_methods.webui.table import Table

SKIMMED, MIMIC, APG, ZERO_STAR, MAHIRO, OFF = "Skimmed CFG", "mimic scale", "APG", "CFG-Zero*", "MaHiRo", "off"
METHODS = (SKIMMED, MIMIC, APG, ZERO_STAR, MAHIRO, OFF)
PAG, SEG = "PAG", "SEG"
MIDDLE, COARSE, ALL_LAYERS = "middle", "coarse", "all"

MAX_SCALE = 30.0
NO_GUIDANCE = 1.001
"""Up to this CFG scale there is no guidance to correct: hosts leave the unconditional prediction out."""


@dataclass(frozen=True)
class GuidanceSettings:
    """Settings of Guidance for one job; those of the mimic scale as in the sd-dynamic-thresholding extension.

    Raises `SettingsError` with a sentence for the user.
    """

    method: str = radio(
        SKIMMED, METHODS, "Method", f"how the CFG scale is applied. {OFF}: only the interval and CFG rescale below",
        about="*Skimmed CFG*: values that guidance would burn come out as at the skimming scale. *mimic scale*: the "
        "image keeps the range of a lower CFG scale. *APG*: drops the part of the guidance that saturates. "
        "*CFG-Zero\\**: first scales the prediction without the prompt. *MaHiRo*: leans towards the prompt's own "
        "prediction. *off*: plain guidance, for the interval and CFG rescale alone",
        important=True, always=True, axis="Method",
    )  # fmt: skip
    skimming_scale: float = slider(
        5.0, 0.0, MAX_SCALE, 0.5, "Skimming scale", f"for {SKIMMED}: the CFG scale your checkpoint looks good at",
        about="for *Skimmed CFG*: the CFG scale of the values that would burn. It must be below the CFG scale, or "
        "nothing changes",
        important=True, always=True, axis="Skimming scale",
    )  # fmt: skip
    rescale: float = slider(
        0.0, 0.0, 1.0, 0.05, "CFG rescale", "0 is off; with any method",
        about="with any method: how far contrast goes back to that of the unguided image. 0 is off; the paper uses 0.7",
        important=True, key="CFG rescale", axis="CFG rescale",
    )  # fmt: skip
    highest_sigma: float = slider(
        5.42, 0.0, 10_000.0, 0.01, "Highest sigma", "earlier steps take the scale below. 0: no limit",
        about="steps with more noise than this, the first ones, take the CFG scale outside. 0: from the start",
        end=15.0, important=True, always=True, key="highest sigma", axis="Interval: highest sigma",
    )  # fmt: skip
    lowest_sigma: float = slider(
        0.28, 0.0, 10_000.0, 0.01, "Lowest sigma", "later steps take the scale below. 0: no limit",
        about="steps with this much noise or less, the last ones, take the CFG scale outside. 0: to the end",
        end=5.0, important=True, always=True, key="lowest sigma", axis="Interval: lowest sigma",
    )  # fmt: skip
    outside_scale: float = slider(
        5.0, 1.0, MAX_SCALE, 0.5, "CFG scale outside", "at most this on the other steps. 1: no guidance there",
        about="outside the interval, the CFG scale is at most this. 1: no guidance there, as in the paper",
        important=True, always=True, key="CFG scale outside", axis="CFG scale outside",
    )  # fmt: skip
    mimic_scale: float = slider(
        5.0, 0.0, MAX_SCALE, 0.5, "Mimic scale", "the CFG scale whose range is taken",
        about="the CFG scale whose range is used. It must be below the CFG scale, or nothing changes (unless a "
        "schedule moves one of them)",
        always=True, axis="Mimic scale (0 is off)", old=("Mimic scale", "dynthres_mimic_scale"),
    )  # fmt: skip
    threshold_percentile: float = slider(
        100.0, 50.0, 100.0, 0.05, "Threshold percentile", "values beyond it are clipped",
        about="ignores values beyond it when the range is measured, and clips them with *MEAN*. 100 counts all; "
        "99.5 keeps a few extremes from dimming the rest",
        key="percentile", axis="Percentile",
        old=("Threshold percentile", Old("dynthres_threshold_percentile", lambda share: str(float(share) * 100))),
    )  # fmt: skip
    mimic_mode: str = dropdown(
        "Constant", SCHEDULES, "Mimic scale schedule", about="changes the mimic scale over the steps",
        old=("Mimic mode", "dynthres_mimic_mode"),
    )  # fmt: skip
    mimic_scale_min: float = slider(
        0.0, 0.0, MAX_SCALE, 0.5, "Mimic scale minimum", "where the schedule is lowest",
        about="the mimic scale where its schedule is lowest",
        key="mimic scale minimum", old=("Mimic scale minimum", "dynthres_mimic_scale_min"),
    )  # fmt: skip
    cfg_mode: str = dropdown(
        "Constant", SCHEDULES, "CFG scale schedule", about="changes the CFG scale over the steps",
        key="CFG mode", old=("CFG mode", "dynthres_cfg_mode"),
    )  # fmt: skip
    cfg_scale_min: float = slider(
        0.0, 0.0, MAX_SCALE, 0.5, "CFG scale minimum", "where the schedule is lowest",
        about="the CFG scale where its schedule is lowest",
        key="CFG scale minimum", old=("CFG scale minimum", "dynthres_cfg_scale_min"),
    )  # fmt: skip
    schedule_value: float = slider(
        4.0, 0.0, 40.0, 0.5, "Schedule value", "the power, or the number of repeats",
        about="the exponent of *Power Up* and *Power Down*; the number of repeats of *Linear Repeating*, *Cosine "
        "Repeating* and *Sawtooth*",
        old=("Scheduler value", "Power scheduler value", "dynthres_sched_val"),
    )  # fmt: skip
    separate_feature_channels: bool = checkbox(
        True, "Separate feature channels", about="on: each latent channel is measured separately; off: all together",
        old=("Separate Feature Channels", "dynthres_separate_feature_channels"),
    )  # fmt: skip
    scaling_startpoint: str = radio(
        "ZERO", STARTPOINTS, "Scaling startpoint",
        about="*ZERO* scales from zero. *MEAN* scales from each channel's mean, which high guidance shifts: most "
        "burnt pixels stay. *MEAN* is the sd-dynamic-thresholding extension's default, and what infotexts "
        "without this field mean",
        always=True, old=("Scaling Startpoint", "dynthres_scaling_startpoint"),
    )  # fmt: skip
    variability_measure: str = radio(
        "AD", VARIABILITIES, "Variability measure",
        about="*AD*: the largest difference from the mean. *STD*: the standard deviation",
        old=("Variability Measure", "dynthres_variability_measure"),
    )  # fmt: skip
    interpolate_phi: float = slider(
        1.0, 0.0, 1.0, 0.01, "Interpolate phi", "how much of the effect",
        about="amount of the effect; 1 is all of it",
        old=("Interpolate Phi", "dynthres_interpolate_phi"),
    )  # fmt: skip
    apg_eta: float = slider(
        0.0, 0.0, 1.0, 0.05, "APG eta", "how much of the part that saturates stays",
        about="how much of the guidance along the image, which saturates, stays. 1 is plain guidance",
    )  # fmt: skip
    apg_norm: float = slider(
        0.0, 0.0, 200.0, 0.5, "APG norm", "limit of the guidance's length, 0 is none",
        about="limit of the L2 norm of the guidance over an image, 0 is none. The paper: 7.5 for SD2, 15 for SDXL",
        end=50.0,
    )  # fmt: skip
    apg_momentum: float = slider(
        0.0, -0.95, 0.95, 0.05, "APG momentum", "of the guidance over the steps, 0 is none",
        about="how much of the earlier steps' guidance is added. The paper: -0.5",
    )  # fmt: skip
    perturbation_scale: float = slider(
        0.0, 0.0, 20.0, 0.5, "Perturbation scale", "0 is off; each step takes about half as long again",
        about="how far to lead away from the image of a model with worse attention, at any CFG scale and with any "
        "method. 0 is off; the papers use 3",
        axis="Perturbation scale (0 is off)",
    )  # fmt: skip
    perturbation: str = radio(
        PAG, (PAG, SEG), "Perturbation", "how self-attention is made worse",
        about="*PAG*: each position sees only itself. *SEG*: what positions look for is blurred, which is gentler",
        always=True, axis="Perturbation",
    )  # fmt: skip
    perturbed_layers: str = radio(
        MIDDLE, (MIDDLE, COARSE, ALL_LAYERS), "Perturbed layers", "the middle block is the papers' choice",
        about="self-attention layers that are made worse: those of the UNet's *middle* block, as in the papers, all of "
        "the *coarse* ones, or *all*",
        axis="Perturbed layers",
    )  # fmt: skip
    seg_blur: float = slider(
        100.0, 0.5, 100_000.0, 0.5, "SEG blur", "sigma in positions of the layer",
        about="for *SEG*: sigma of the blur, in positions of the layer. 10000 and more: the mean of the image",
        end=100.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    @property
    def unused(self) -> set[str]:
        """The controls that change nothing with these settings."""
        owners = {SKIMMED: ("skimming",), MIMIC: _OF_MIMIC, APG: ("apg",)}
        others = tuple(part for method, parts in owners.items() if method != self.method for part in parts)
        unused = {control.name for control in CONTROLS.controls if control.name.startswith(others)}
        unused |= {f"{which}_scale_min" for which in ("mimic", "cfg") if getattr(self, f"{which}_mode") == "Constant"}
        if not self.uses_schedule_value:
            unused.add("schedule_value")
        if not self.perturbs:
            unused |= {"perturbation_scale", "perturbation", "perturbed_layers", "seg_blur"}
        elif self.perturbation == PAG:
            unused.add("seg_blur")
        return unused if self.has_interval else unused | {"outside_scale"}

    @property
    def active(self) -> bool:
        """Whether a guided prediction can come out changed, at any CFG scale."""
        return self.acts_at(math.inf)

    @property
    def perturbs(self) -> bool:
        """Whether guidance leads away from perturbed rows, which it does at any CFG scale."""
        return self.perturbation_scale > 0

    @property
    def has_interval(self) -> bool:
        """Whether some noise levels take another scale."""
        return self.highest_sigma > 0 or self.lowest_sigma > 0

    @property
    def scheduled(self) -> bool:
        """Whether one of the mimic scale's scales changes over the steps."""
        return not self.mimic_mode == self.cfg_mode == "Constant"

    def acts_at(self, cfg_scale: float) -> bool:
        """Whether a job with this CFG scale can come out changed."""
        return self.perturbs or self.changes_guidance_at(cfg_scale)

    def changes_guidance_at(self, cfg_scale: float) -> bool:
        """Whether something else than perturbed rows changes a job with this CFG scale."""
        if cfg_scale <= NO_GUIDANCE:
            return False
        outside = self.has_interval and self.outside_scale < cfg_scale
        return self.rescale > 0 or outside or self.combines_at(cfg_scale)

    def combines_at(self, cfg_scale: float) -> bool:
        """Whether the method itself changes a job with this CFG scale."""
        if self.method == SKIMMED:
            return self.skimming_scale < cfg_scale
        if self.method == MIMIC:
            moved = self.cfg_mode != "Constant" or (self.scheduled and self.interpolate_phi > 0)
            return moved or self.takes_range(cfg_scale, self.mimic_scale)
        if self.method == APG:
            return self.apg_eta < 1 or self.apg_norm > 0 or self.apg_momentum != 0
        return self.method != OFF

    def scale_at_sigma(self, cfg_scale: float, sigma: float) -> float:
        """The CFG scale at a noise level: at most `outside_scale` outside the interval."""
        inside = self.lowest_sigma < sigma and (self.highest_sigma == 0 or sigma <= self.highest_sigma)
        return cfg_scale if inside else min(cfg_scale, self.outside_scale)

    def takes_range(self, cfg_scale: float, mimic_scale: float) -> bool:
        """Whether a step with these scales takes the mimic scale's range.

        With constant scales only a smaller one: a larger one would burn what is fine. Schedules keep the range of the
        mimic scale where they bring the CFG scale below it.
        """
        return self.interpolate_phi > 0 and (mimic_scale < cfg_scale or (self.scheduled and mimic_scale != cfg_scale))

    def mimic_scale_at(self, step: int, steps: int) -> float:
        """The mimic scale at sampling step `step` (from 0) of `steps`."""
        return scheduled(self.mimic_scale, self.mimic_mode, self.mimic_scale_min, step, steps, self.schedule_value)

    def cfg_scale_at(self, cfg_scale: float, step: int, steps: int) -> float:
        """The job's CFG scale at sampling step `step` (from 0) of `steps`."""
        return scheduled(cfg_scale, self.cfg_mode, self.cfg_scale_min, step, steps, self.schedule_value)

    @property
    def uses_schedule_value(self) -> bool:
        """Whether one of the schedules has a value."""
        return self.mimic_mode in VALUED_SCHEDULES or self.cfg_mode in VALUED_SCHEDULES


PRESETS: dict[str, dict[str, Any]] = {
    "sd1": {"skimming_scale": 7.0, "outside_scale": 7.0},
    "sdxl": {},
    "v_prediction": {"rescale": 0.7, "highest_sigma": 0.0, "lowest_sigma": 0.0},
}
"""Settings for a kind of checkpoint, by what differs from the defaults; docs/guidance.md has the reasons."""

_OF_MIMIC = ("mimic", "threshold", "cfg_", "schedule", "separate", "scaling", "variability", "interpolate")
OLD_TITLE, OLD_RESCALE = "Dynamic thresholding", "CFG rescale only"
OLD_NAMES = (
    "enabled", "mimic_scale", "threshold_percentile", "mimic_mode", "mimic_scale_min", "cfg_mode", "cfg_scale_min",
    "schedule_value", "separate_feature_channels", "scaling_startpoint", "variability_measure", "interpolate_phi",
    "method", "rescale",
)  # fmt: skip
"""The order of a list when the box was called Dynamic thresholding; the first twelve are the published extension's."""


def of_old(named: Mapping[str, Any]) -> dict[str, Any]:
    """What fields meant when the box was called Dynamic thresholding, in today's fields."""
    off = {"highest_sigma": 0.0, "lowest_sigma": 0.0}
    if named.get("method") == OLD_RESCALE:
        return {**named, **off, "method": OFF, "rescale": named.get("rescale", 0.7)}
    return {"method": MIMIC, **named, **off, "rescale": 0.0}


def _is_old(fields: Mapping[str, Any]) -> bool:
    """An infotext of the sd-dynamic-thresholding extension, or of the form that Forge has built in."""
    return "Dynamic thresholding enabled" in fields or str(fields.get("dynthres_enabled")) == "True"


def _unsaid(texts: Mapping[str, str], is_old: bool) -> dict[str, Any]:
    """Earlier versions and the extensions do not write their defaults."""
    if not is_old:
        return {}
    meant = of_old({"method": texts["method"]} if "method" in texts else {})
    return meant if meant["method"] == OFF else {**meant, "scaling_startpoint": "MEAN"}


_FORMER = Former(
    OLD_TITLE,
    OLD_NAMES,
    of_old,
    script="dynamic_thresholding.py",
    labels={"rescale": "Rescale"},
    defaults={"method": MIMIC, "rescale": 0.7},
    peers=("Dynamic Thresholding (CFG Scale Fix)",),
)
CONTROLS = Table("Guidance", GuidanceSettings, ("off", "on"), is_old=_is_old, unsaid=_unsaid, former=_FORMER)
