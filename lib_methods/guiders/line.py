"""What Guidance will do at a CFG scale, in one plain line for the page."""

from __future__ import annotations

from lib_methods.guiders.mimic import scheduled
from lib_methods.guiders.settings import APG, MAHIRO, MIMIC, NO_GUIDANCE, SKIMMED, ZERO_STAR, GuidanceSettings


def describe(settings: GuidanceSettings, cfg_scale: float, steps: int) -> str:
    """What will happen, in one plain line: "At CFG 20, values that would burn come out as at CFG 5, ..."."""
    at = f"At CFG {cfg_scale:g}"
    if not settings.acts_at(cfg_scale):
        if cfg_scale <= NO_GUIDANCE:
            return f"{at} there is no guidance that could burn colours, so nothing changes."
        return _why_nothing(settings, at)
    parts, has_guidance = [at], cfg_scale > NO_GUIDANCE
    if has_guidance and settings.combines_at(cfg_scale):
        parts = _mimicking(settings, cfg_scale, steps) if settings.method == MIMIC else [at, _combining(settings)]
    if settings.perturbs:
        parts.append(f"{settings.perturbation} {settings.perturbation_scale:g} leads away from worse attention")
    if settings.rescale:
        parts.append(f"contrast moves {settings.rescale:.0%} of the way back to that of the unguided image")
    if has_guidance and settings.has_interval and settings.outside_scale < cfg_scale:
        above = f"above sigma {settings.highest_sigma:g}" if settings.highest_sigma else ""
        below = f"below sigma {settings.lowest_sigma:g}" if settings.lowest_sigma else ""
        where = " and ".join(filter(None, (above, below)))
        if 0 < settings.highest_sigma <= settings.lowest_sigma:
            where = "at every sigma (the highest is not above the lowest)"
        parts.append(f"the CFG scale is {settings.outside_scale:g} {where}")
    return ", ".join(parts)


def _why_nothing(settings: GuidanceSettings, at: str) -> str:
    """Why these settings change nothing, and how to fix that."""
    if settings.method == MIMIC and settings.interpolate_phi == 0:
        return "Interpolate phi is 0, so nothing changes."
    if settings.method in (MIMIC, SKIMMED):
        name = "mimic" if settings.method == MIMIC else "skimming"
        scale = settings.mimic_scale if settings.method == MIMIC else settings.skimming_scale
        return (
            f"{at} nothing changes, because the {name} scale ({scale:g}) is not below it. "
            f"Lower the {name} scale or raise the CFG scale."
        )
    if settings.method == APG:
        return "APG with eta 1, no norm and no momentum is plain guidance, so nothing changes."
    return "The method and CFG rescale are off, and no step takes another CFG scale, so nothing changes."


def _combining(settings: GuidanceSettings) -> str:
    if settings.method == SKIMMED:
        return f"values that would burn come out as at CFG {settings.skimming_scale:g}"
    if settings.method == ZERO_STAR:
        return "the prediction without the prompt is first scaled to that with it"
    if settings.method == MAHIRO:
        return "guidance leans towards the prompt's own prediction"
    kept = f"only {settings.apg_eta:.0%} of" if settings.apg_eta else "nothing of"
    parts = [] if settings.apg_eta == 1 else [f"{kept} the guidance that saturates is used"]
    if settings.apg_norm:
        parts.append(f"its norm is at most {settings.apg_norm:g}")
    if settings.apg_momentum:
        parts.append(f"momentum {settings.apg_momentum:g}")
    return ", ".join(parts)


def _mimicking(settings: GuidanceSettings, cfg_scale: float, steps: int) -> list[str]:
    cfg = _span(settings, cfg_scale, settings.cfg_mode, settings.cfg_scale_min, steps)
    if settings.interpolate_phi == 0:
        return [f"The CFG scale is {cfg}; colours and contrast are left alone (interpolate phi is 0)"]
    mimic = _span(settings, settings.mimic_scale, settings.mimic_mode, settings.mimic_scale_min, steps)
    parts = [f"At CFG {cfg}, colours and contrast stay in the range of CFG {mimic}"]
    if settings.variability_measure == "STD":
        parts.append("measured by standard deviation")
    elif settings.threshold_percentile < 100:
        clipped = "left out of the measure" if settings.scaling_startpoint == "ZERO" else "clipped"
        parts.append(f"values beyond percentile {settings.threshold_percentile:g} {clipped}")
    if not settings.separate_feature_channels:
        parts.append("all channels together")
    if settings.scaling_startpoint == "MEAN":
        parts.append("the mean of each channel is kept")
    if settings.interpolate_phi < 1:
        parts.append(f"{settings.interpolate_phi:.0%} of the effect")
    return parts


def _span(settings: GuidanceSettings, scale: float, schedule: str, minimum: float, steps: int) -> str:
    """A scale over the steps: "15", "15 to 3 (Linear Down)", "3 to 15 and back (Sawtooth)"."""
    first, last = (
        scheduled(scale, schedule, minimum, step, steps, settings.schedule_value) for step in (0, max(0, steps - 1))
    )
    if schedule == "Constant":
        return f"{scale:g}"
    if schedule in ("Linear Repeating", "Cosine Repeating", "Sawtooth"):
        return f"{minimum:g} to {scale:g} and back ({schedule})"
    return f"{first:.3g} to {last:.3g} ({schedule})"
