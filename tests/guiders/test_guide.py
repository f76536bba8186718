"""Guidance's part in a sampling, on the seam with bare denoisers (see tests/fabric/test_guidance.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods import hosts
from lib_methods.denoiser import Guidance
from lib_methods.guidance import rescale
from lib_methods.guiders.apply import GuidanceGuide, attach
from lib_methods.guiders.mimic import SCHEDULES, mimic_threshold
from lib_methods.guiders.settings import APG, METHODS, MIMIC, OFF, SKIMMED, GuidanceSettings
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import small_unet
from tests.fabric.test_guidance import ALPHAS, STEP, Twist, call, running

CALL: Any = SimpleNamespace(step=0, level=torch.tensor([3.0]))
EVERY: list[dict[str, Any]] = [{"method": method, "rescale": 0.5, "highest_sigma": 5} for method in METHODS]


def settings_of(**changed: Any) -> GuidanceSettings:
    """The mimic scale at every noise level, unless said otherwise."""
    return GuidanceSettings(**{"method": MIMIC, "highest_sigma": 0, "lowest_sigma": 0, **changed})


def guide(steps: int = 10, **changed: Any) -> GuidanceGuide:
    return GuidanceGuide(BareSampling(small_unet(), steps=steps), settings_of(**changed))


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
    settings = settings_of(mimic_scale=2, threshold_percentile=95, scaling_startpoint="MEAN")
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
@pytest.mark.parametrize("changed", [*EVERY, {"cfg_mode": "Linear Up"}, {"method": OFF, "rescale": 0.7}])
def test_without_guidance_nothing_is_touched(scale: float, changed: dict[str, Any]) -> None:
    """CFG scale 1, and steps whose unconditional rows the host skips."""
    seen = guidance(scale)
    assert guide(**changed).guide(CALL, seen) is seen.guided


@pytest.mark.parametrize("measure", ["AD", "STD"])
@pytest.mark.parametrize("cfg_scale", [7.0, 4.0])
def test_a_mimic_scale_that_is_not_below_the_cfg_scale_touches_nothing(cfg_scale: float, measure: str) -> None:
    seen = guidance(cfg_scale)
    assert guide(mimic_scale=7, variability_measure=measure).guide(CALL, seen) is seen.guided


def test_rescale_is_the_papers_formula_after_any_method() -> None:
    seen = guidance()
    assert torch.equal(guide(method=OFF, rescale=0.5).guide(CALL, seen), rescale(seen.guided, seen.cond, 0.5))
    for method in METHODS:
        combined = guide(method=method).guide(CALL, seen)
        assert torch.equal(guide(method=method, rescale=0.5).guide(CALL, seen), rescale(combined, seen.cond, 0.5))


@pytest.mark.parametrize("step", [0, 4, 9])
def test_both_scales_follow_their_schedules(step: int) -> None:
    settings = settings_of(
        mimic_scale=8,
        mimic_mode="Linear Down",
        mimic_scale_min=2,
        cfg_mode="Cosine Up",
        cfg_scale_min=9,
        scaling_startpoint="MEAN",
    )
    seen = guidance()
    found = GuidanceGuide(BareSampling(small_unet(), steps=10), settings).guide(SimpleNamespace(step=step), seen)
    wanted = mimic_threshold(seen.at(settings.cfg_scale_at(15.0, step, 10)), seen.at(8 - 6 * step / 9))
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("mode", SCHEDULES)
def test_one_step_has_no_schedule_to_divide_by(mode: str) -> None:
    found = guide(steps=1, mimic_mode=mode, cfg_mode=mode, mimic_scale_min=1, cfg_scale_min=2).guide(CALL, guidance())
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("changed", [*({"method": method} for method in METHODS), {"cfg_mode": "Linear Down"}])
def test_what_others_did_to_the_prediction_stays(changed: dict[str, Any]) -> None:
    """Another extension has shifted a channel, which stays so, also where a schedule changes the scale."""
    seen = guidance()
    shifted = Guidance(seen.cond, seen.base, seen.direction, seen.scale, seen.guided + 3)
    step, changed = SimpleNamespace(step=3, level=torch.tensor([3.0])), {**changed, "scaling_startpoint": "MEAN"}
    assert torch.allclose(guide(**changed).guide(step, shifted), guide(**changed).guide(step, seen) + 3, atol=1e-4)


def test_half_precision_stays_half_precision() -> None:
    assert guide().guide(CALL, guidance(dtype=torch.float16)).dtype == torch.float16


def test_settings_that_change_nothing_are_not_attached() -> None:
    sampling = BareSampling(small_unet())
    assert not attach(sampling, settings_of(interpolate_phi=0))
    assert not attach(sampling, settings_of(method=OFF))
    assert not sampling.guides
    assert attach(sampling, GuidanceSettings())
    assert attach(sampling, GuidanceSettings(skimming_scale=3))  # hosts that announce a pass twice: the last one counts
    assert len(sampling.guides) == 1


def test_the_order_of_attaching_is_without_effect() -> None:
    """Methods that correct what comes out, as FABRIC's colours, are asked after it."""
    results = []
    for turned in (False, True):
        p, denoiser = running()
        sampling = hosts.sampling_of(p, torch.zeros(2, 4, 8, 8))
        steps = [lambda s=sampling: attach(s, settings_of(mimic_scale=2)), lambda s=sampling: s.add_guide(Twist(90))]
        for step in reversed(steps) if turned else steps:
            step()
        results.append(call(denoiser)[1])
    assert torch.equal(*results)


def at(sigma: float) -> Any:
    return SimpleNamespace(step=0, level=torch.tensor([sigma]))


@pytest.mark.parametrize("method", METHODS)
def test_outside_the_interval_the_conditional_prediction_remains(method: str) -> None:
    """As diffusers' guiders have it outside their share of the steps."""
    from diffusers.guiders import ClassifierFreeGuidance

    seen = guidance()
    interval: dict[str, Any] = {"highest_sigma": 5.42, "lowest_sigma": 0.28}
    for sigma, step in ((14.6, 0), (5.43, 0), (5.41, 1), (0.29, 1), (0.27, 2)):
        theirs = ClassifierFreeGuidance(guidance_scale=15.0, start=1 / 3, stop=2 / 3)
        theirs.set_state(step=step, num_inference_steps=3, timestep=torch.tensor(0))
        found = guide(method=method, **interval, outside_scale=1).guide(at(sigma), seen)
        if step == 1:
            assert torch.equal(found, guide(method=method).guide(CALL, seen))
            if method == OFF:
                assert torch.allclose(found, theirs.forward(seen.cond, seen.base).pred, atol=1e-5)
        else:
            assert torch.allclose(found, theirs.forward(seen.cond, None).pred, atol=1e-5)


def test_a_cfg_scale_up_to_the_one_outside_is_left_alone_there() -> None:
    seen = guidance(5.0)
    part = GuidanceGuide(BareSampling(small_unet()), GuidanceSettings())
    assert all(part.guide(at(sigma), seen) is seen.guided for sigma in (14.6, 3.0, 0.03))
    assert not part.acted


def test_an_image_guided_twice_keeps_its_image_guidance_outside_the_interval() -> None:
    """InstructPix2Pix has the image's share in the base; only the text's guidance ends."""
    seen = guidance()
    two = Guidance(seen.cond, seen.base + 1, seen.direction, seen.scale, seen.base + 1 + seen.scale * seen.direction)
    found = guide(method=OFF, highest_sigma=1, outside_scale=1).guide(at(3.0), two)
    assert torch.allclose(found, seen.base + 1 + seen.direction, atol=1e-5)


def test_apgs_momentum_starts_again_with_each_pass() -> None:
    calls = [guidance(scale) for scale in (15.0, 9.0, 12.0)]
    first, again = guide(method=APG, apg_momentum=-0.5), guide(method=APG, apg_momentum=-0.5)
    found = [first.guide(CALL, seen) for seen in calls]
    assert all(torch.equal(image, again.guide(CALL, seen)) for image, seen in zip(found, calls))
    assert not torch.equal(found[1], guide(method=APG).guide(CALL, calls[1]))


def test_skimmed_cfg_acts_above_its_own_scale_alone() -> None:
    for scale, acts in ((4.0, False), (5.0, False), (5.5, True)):
        seen = guidance(scale)
        assert (guide(method=SKIMMED).guide(CALL, seen) is not seen.guided) is acts
