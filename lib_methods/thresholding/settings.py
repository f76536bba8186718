"""What the user asks of dynamic thresholding: one validated, immutable object."""

from __future__ import annotations

from dataclasses import dataclass

from lib_methods.checks import check_choice, check_number, check_switch
from lib_methods.thresholding.formulas import SCHEDULES, STARTPOINTS, VALUED_SCHEDULES, VARIABILITIES, scheduled

MIMIC, RESCALE = "mimic scale", "CFG rescale only"
METHODS = (MIMIC, RESCALE)

MAX_SCALE = 30.0
MAX_SCHEDULE_VALUE = 40.0
LEAST_PERCENTILE = 50.0
NO_GUIDANCE = 1.001
"""Up to this CFG scale there is no guidance to correct: hosts leave the unconditional prediction out."""


@dataclass(frozen=True)
class ThresholdSettings:
    """Settings of dynamic thresholding for one job.

    Important:
        method: "mimic scale" gives the guided prediction the range that it would have at a lower CFG scale; "CFG
            rescale only" gives it the standard deviation of the conditional prediction (arXiv 2305.08891), and uses
            `rescale` alone.
        mimic_scale: the CFG scale whose range is taken, 0 to 30. The default lies below the hosts' usual CFG scale 7.
        rescale: share of the rescaling, 0 to 1.
    To tinker with, names and meaning as in the sd-dynamic-thresholding extension:
        threshold_percentile: values beyond it are clipped, 50 to 100.
        mimic_mode, mimic_scale_min: schedule of the mimic scale over the steps, and the scale where it is lowest.
        cfg_mode, cfg_scale_min: the same of the CFG scale.
        schedule_value: the power, or the number of repeats, of the schedules that have one; 0 to 40.
        separate_feature_channels: measure each channel of the latent by itself.
        scaling_startpoint: scale from "ZERO", or from the channel's "MEAN", which leaves most of the burnt pixels.
        variability_measure: "AD", the largest difference from the mean, or "STD", the standard deviation.
        interpolate_phi: share of the result, the rest is the plain guided prediction; 0 to 1.

    Raises `SettingsError` with a sentence for the user.
    """

    mimic_scale: float = 5.0
    threshold_percentile: float = 100.0
    mimic_mode: str = "Constant"
    mimic_scale_min: float = 0.0
    cfg_mode: str = "Constant"
    cfg_scale_min: float = 0.0
    schedule_value: float = 4.0
    separate_feature_channels: bool = True
    scaling_startpoint: str = "ZERO"
    variability_measure: str = "AD"
    interpolate_phi: float = 1.0
    method: str = MIMIC
    rescale: float = 0.7

    def __post_init__(self) -> None:
        for name, (label, low, high) in NUMBERS.items():
            object.__setattr__(self, name, check_number(label, getattr(self, name), low, high))
        for name, (label, choices) in CHOICES.items():
            check_choice(label, getattr(self, name), choices)
        check_switch("Separate feature channels", self.separate_feature_channels)

    @property
    def active(self) -> bool:
        """Whether a guided prediction can come out changed."""
        if self.method == RESCALE:
            return self.rescale > 0
        return self.interpolate_phi > 0 or self.cfg_mode != "Constant"

    @property
    def scheduled(self) -> bool:
        """Whether one of the scales changes over the steps."""
        return not self.mimic_mode == self.cfg_mode == "Constant"

    def acts_at(self, cfg_scale: float) -> bool:
        """Whether a job with this CFG scale can come out changed."""
        if not self.active or cfg_scale <= NO_GUIDANCE:
            return False
        return self.method == RESCALE or self.scheduled or self.takes_range(cfg_scale, self.mimic_scale)

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
        """What becomes of the job's CFG scale at sampling step `step` (from 0) of `steps`."""
        return scheduled(cfg_scale, self.cfg_mode, self.cfg_scale_min, step, steps, self.schedule_value)

    @property
    def uses_schedule_value(self) -> bool:
        """Whether one of the schedules has a value."""
        return self.mimic_mode in VALUED_SCHEDULES or self.cfg_mode in VALUED_SCHEDULES

    def describe(self, cfg_scale: float, steps: int) -> str:
        """What will happen, in one plain line: "At CFG 15, colours and contrast stay in the range of CFG 5"."""
        at = f"At CFG {cfg_scale:g}"
        if cfg_scale <= NO_GUIDANCE:
            return f"{at} there is no guidance that could burn colours, so nothing changes."
        if not self.active:
            setting = "Rescale" if self.method == RESCALE else "Interpolate phi"
            return f"{setting} is 0, so nothing changes."
        if self.method == RESCALE:
            return f"{at}, contrast is brought {self.rescale:.0%} of the way back to that without guidance"
        cfg = self._span(cfg_scale, self.cfg_mode, self.cfg_scale_min, steps)
        if self.interpolate_phi == 0:
            return f"The CFG scale is {cfg}; colours and contrast are left alone (interpolate phi is 0)"
        if not self.acts_at(cfg_scale):
            return (
                f"{at} nothing changes, because the mimic scale ({self.mimic_scale:g}) is not below it. "
                "Lower the mimic scale or raise the CFG scale."
            )
        mimic = self._span(self.mimic_scale, self.mimic_mode, self.mimic_scale_min, steps)
        parts = [f"At CFG {cfg}, colours and contrast stay in the range of CFG {mimic}"]
        if self.variability_measure == "STD":
            parts.append("measured by standard deviation")
        elif self.threshold_percentile < 100:
            clipped = "left out of the measure" if self.scaling_startpoint == "ZERO" else "clipped"
            parts.append(f"values beyond percentile {self.threshold_percentile:g} {clipped}")
        if not self.separate_feature_channels:
            parts.append("all channels together")
        if self.scaling_startpoint == "MEAN":
            parts.append("the mean of each channel is kept")
        if self.interpolate_phi < 1:
            parts.append(f"{self.interpolate_phi:.0%} of the effect")
        return ", ".join(parts)

    def _span(self, scale: float, schedule: str, minimum: float, steps: int) -> str:
        """A scale over the steps: "15", "15 to 3 (Linear Down)", "3 to 15 and back (Sawtooth)"."""
        first, last = (
            scheduled(scale, schedule, minimum, step, steps, self.schedule_value) for step in (0, max(0, steps - 1))
        )
        if schedule == "Constant":
            return f"{scale:g}"
        if schedule in ("Linear Repeating", "Cosine Repeating", "Sawtooth"):
            return f"{minimum:g} to {scale:g} and back ({schedule})"
        return f"{first:.3g} to {last:.3g} ({schedule})"


NUMBERS = {
    "mimic_scale": ("Mimic scale", 0.0, MAX_SCALE),
    "threshold_percentile": ("Percentile", LEAST_PERCENTILE, 100.0),
    "mimic_scale_min": ("The minimum of the mimic scale", 0.0, MAX_SCALE),
    "cfg_scale_min": ("The minimum of the CFG scale", 0.0, MAX_SCALE),
    "schedule_value": ("The value of the schedules", 0.0, MAX_SCHEDULE_VALUE),
    "interpolate_phi": ("Interpolate phi", 0.0, 1.0),
    "rescale": ("Rescale", 0.0, 1.0),
}
"""Label, least and largest value of each number."""

CHOICES = {
    "mimic_mode": ("The mimic scale's schedule", SCHEDULES),
    "cfg_mode": ("The CFG scale's schedule", SCHEDULES),
    "scaling_startpoint": ("Scaling startpoint", STARTPOINTS),
    "variability_measure": ("Variability measure", VARIABILITIES),
    "method": ("Method", METHODS),
}
"""Label and values of each choice."""
