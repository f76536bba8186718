"""Settings of dynamic thresholding: one validated, immutable object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_methods.guiders.mimic import SCHEDULES, STARTPOINTS, VALUED_SCHEDULES, VARIABILITIES, scheduled
from lib_methods.webui.controls import Old, check, checkbox, dropdown, radio, slider
from lib_methods.webui.table import Table

MIMIC, RESCALE = "mimic scale", "CFG rescale only"
METHODS = (MIMIC, RESCALE)

MAX_SCALE = 30.0
NO_GUIDANCE = 1.001
"""Up to this CFG scale there is no guidance to correct: hosts leave the unconditional prediction out."""


@dataclass(frozen=True)
class ThresholdSettings:
    """Settings of dynamic thresholding for one job; names and meaning as in the sd-dynamic-thresholding extension.

    Raises `SettingsError` with a sentence for the user.
    """

    mimic_scale: float = slider(
        5.0, 0.0, MAX_SCALE, 0.5, "Mimic scale", "the CFG scale whose range is taken",
        about="the CFG scale whose range is used. It must be below the CFG scale, or nothing changes (unless a "
        "schedule moves one of them)",
        important=True, always=True, axis="Mimic scale (0 is off)", old=("Mimic scale", "dynthres_mimic_scale"),
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
    method: str = radio(
        MIMIC, METHODS, "Method",
        f"{MIMIC}: the range that a lower CFG scale gives. {RESCALE}: the contrast that no guidance gives",
        about="*mimic scale*: gives the guided prediction the range it would have at a lower CFG scale. *CFG "
        "rescale only*: gives it the standard deviation of the unguided prediction; of the other controls, "
        "only *Rescale* counts",
        important=True,
    )  # fmt: skip
    rescale: float = slider(
        0.7, 0.0, 1.0, 0.05, "Rescale", f"how much of it, for {RESCALE}",
        about="amount of CFG rescale; the paper uses 0.7",
        important=True, key="CFG rescale", axis="CFG rescale (0 is off)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    @property
    def unused(self) -> set[str]:
        """The controls that change nothing with these settings."""
        if self.method == RESCALE:
            return {control.name for control in CONTROLS.controls} - {"method", "rescale"}
        unused = {f"{which}_scale_min" for which in ("mimic", "cfg") if getattr(self, f"{which}_mode") == "Constant"}
        return unused | {"rescale"} | (set() if self.uses_schedule_value else {"schedule_value"})

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
        """The job's CFG scale at sampling step `step` (from 0) of `steps`."""
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
            return f"{at}, contrast moves {self.rescale:.0%} of the way back to that of the unguided image"
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


def _is_old(fields: Mapping[str, Any]) -> bool:
    """An infotext of the sd-dynamic-thresholding extension, or of the form that Forge has built in."""
    return "Dynamic thresholding enabled" in fields or str(fields.get("dynthres_enabled")) == "True"


def _unsaid(texts: Mapping[str, str], is_old: bool) -> dict[str, Any]:
    """Earlier versions and the extensions do not write their default."""
    return {} if texts.get("method") == RESCALE else {"scaling_startpoint": "MEAN"}


CONTROLS = Table("Dynamic thresholding", ThresholdSettings, ("off", "on"), is_old=_is_old, unsaid=_unsaid)
