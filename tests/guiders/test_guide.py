"""Dynamic thresholding's part in a sampling, on the seam with bare denoisers (see tests/fabric/test_guidance.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods import hosts
from lib_methods.denoiser import Guidance
from lib_methods.guidance import rescale
from lib_methods.guiders.apply import ThresholdGuide, attach
from lib_methods.guiders.mimic import SCHEDULES, mimic_threshold
from lib_methods.guiders.settings import MIMIC, RESCALE, ThresholdSettings
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import small_unet
from tests.fabric.test_guidance import ALPHAS, STEP, Twist, call, running

CALL: Any = SimpleNamespace(step=0)


def guide(steps: int = 10, **changed: Any) -> ThresholdGuide:
    return ThresholdGuide(BareSampling(small_unet(), steps=steps), ThresholdSettings(**changed))


def guidance(scale: float = 15.0, dtype: torch.dtype = torch.float32) -> Guidance:
    cond, base = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    direction = cond - base
    return Guidance(cond, base, direction, scale, base + scale * direction)


@pytest.mark.parametrize("slices", [None, 1, 2])
@pytest.mark.parametrize("timesteps", [False, True])
def test_under_and_the_combined_prediction_of_the_clean_latent_is_corrected(
    timesteps: bool, slices: int | None
) -> None:
    p, denoiser = running(timesteps, slices)
    settings = ThresholdSettings(mimic_scale=2, threshold_percentile=95, scaling_startpoint="MEAN")
    assert attach(hosts.sampling_of(p, torch.zeros(2, 4, 8, 8)), settings)
    x, result = call(denoiser, timesteps)
    rows, alpha = denoiser.rows, ALPHAS[STEP]

    def clean(prediction: Tensor) -> Tensor:
        return (x - (1 - alpha).sqrt() * prediction) / alpha.sqrt() if timesteps else prediction

    def at(scale: float) -> Tensor:
        both = 0.7 * (rows[0] - rows[3]) + 0.6 * (rows[1] - rows[3])
        return clean(rows[3:] + scale * torch.stack([both, rows[2] - rows[4]]))

    assert torch.allclose(clean(result), mimic_threshold(at(5.0), at(2.0), share=0.95), atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("changed", [{}, {"cfg_mode": "Linear Up"}, {"method": RESCALE}])
def test_without_guidance_nothing_is_touched(scale: float, changed: dict[str, Any]) -> None:
    """CFG scale 1, and steps whose unconditional rows the host skips."""
    seen = guidance(scale)
    assert guide(**changed).guide(CALL, seen) is seen.guided


@pytest.mark.parametrize("measure", ["AD", "STD"])
@pytest.mark.parametrize("cfg_scale", [7.0, 4.0])
def test_a_mimic_scale_that_is_not_below_the_cfg_scale_touches_nothing(cfg_scale: float, measure: str) -> None:
    seen = guidance(cfg_scale)
    assert guide(mimic_scale=7, variability_measure=measure).guide(CALL, seen) is seen.guided


def test_rescale_only_is_the_papers_formula() -> None:
    seen = guidance()
    wanted = rescale(seen.guided, seen.cond, 0.5)
    assert torch.equal(guide(method=RESCALE, rescale=0.5).guide(CALL, seen), wanted)


@pytest.mark.parametrize("step", [0, 4, 9])
def test_both_scales_follow_their_schedules(step: int) -> None:
    settings = ThresholdSettings(
        8,
        mimic_mode="Linear Down",
        mimic_scale_min=2,
        cfg_mode="Cosine Up",
        cfg_scale_min=9,
        scaling_startpoint="MEAN",
    )
    seen = guidance()
    found = ThresholdGuide(BareSampling(small_unet(), steps=10), settings).guide(SimpleNamespace(step=step), seen)
    wanted = mimic_threshold(seen.at(settings.cfg_scale_at(15.0, step, 10)), seen.at(8 - 6 * step / 9))
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("mode", SCHEDULES)
def test_one_step_has_no_schedule_to_divide_by(mode: str) -> None:
    found = guide(steps=1, mimic_mode=mode, cfg_mode=mode, mimic_scale_min=1, cfg_scale_min=2).guide(CALL, guidance())
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("changed", [{"method": MIMIC}, {"cfg_mode": "Linear Down"}])
def test_what_others_did_to_the_prediction_stays(changed: dict[str, Any]) -> None:
    """Another extension has shifted a channel; the threshold works on that, also where a schedule changes the scale."""
    seen = guidance()
    shifted = Guidance(seen.cond, seen.base, seen.direction, seen.scale, seen.guided + 3)
    step, changed = SimpleNamespace(step=3), {**changed, "scaling_startpoint": "MEAN"}
    assert torch.allclose(guide(**changed).guide(step, shifted), guide(**changed).guide(step, seen) + 3, atol=1e-4)


def test_half_precision_stays_half_precision() -> None:
    assert guide().guide(CALL, guidance(dtype=torch.float16)).dtype == torch.float16


def test_settings_that_change_nothing_are_not_attached() -> None:
    sampling = BareSampling(small_unet())
    assert not attach(sampling, ThresholdSettings(interpolate_phi=0))
    assert not sampling.guides
    assert attach(sampling, ThresholdSettings())
    assert attach(sampling, ThresholdSettings(mimic_scale=3))  # hosts that announce a pass twice: the last one counts
    assert len(sampling.guides) == 1


def test_the_order_of_attaching_is_without_effect() -> None:
    """Methods that correct what comes out, as FABRIC's colours, are asked after it."""
    results = []
    for turned in (False, True):
        p, denoiser = running()
        sampling = hosts.sampling_of(p, torch.zeros(2, 4, 8, 8))
        steps = [lambda s=sampling: attach(s, ThresholdSettings(2)), lambda s=sampling: s.add_guide(Twist(90))]
        for step in reversed(steps) if turned else steps:
            step()
        results.append(call(denoiser)[1])
    assert torch.equal(*results)
