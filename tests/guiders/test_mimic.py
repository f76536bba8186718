"""The formulas agree with a plain reference and with others' code, and keep their promises at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.guidance import rescale
from lib_methods.guiders.mimic import (
    SCHEDULES,
    STARTPOINTS,
    VARIABILITIES,
    mimic_threshold,
    scheduled,
)
from tests.guiders import reference

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 9), st.integers(2, 9))
FORMS = st.fixed_dictionaries(
    {
        "share": st.one_of(st.just(1.0), st.floats(0.5, 1.0)),
        "separate_channels": st.booleans(),
        "startpoint": st.sampled_from(STARTPOINTS),
        "variability": st.sampled_from(VARIABILITIES),
        "phi": st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
    }
)
EVERY_FORM = [
    {"separate_channels": separate, "startpoint": startpoint, "variability": variability, "share": share, "phi": 0.75}
    for separate in (True, False)
    for startpoint in STARTPOINTS
    for variability in VARIABILITIES
    for share in (1.0, 0.95)
]


def latents(seed: int, shape: Any, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * rng.normal(rng.normal(0, 1, (1, shape[1], 1, 1)), 1 + rng.random(), shape)


@given(SHAPES, st.integers(0, 1000), FORMS, st.floats(0.2, 5.0))
def test_the_mimic_scale_equals_the_reference(shape: Any, seed: int, form: dict[str, Any], scale: float) -> None:
    guided, model = latents(seed, shape, scale), latents(seed + 1, shape)
    wanted = reference.mimic(
        guided,
        model,
        form["share"],
        form["separate_channels"],
        form["startpoint"],
        form["variability"],
        form["phi"],
    )
    found = mimic_threshold(torch.from_numpy(guided).float(), torch.from_numpy(model).float(), **form)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@given(
    st.sampled_from(SCHEDULES),
    st.floats(0, 30),
    st.floats(0, 30),
    st.integers(1, 60),
    st.floats(0, 40),
    st.data(),
)
def test_schedules_equal_the_reference_and_stay_between_scale_and_minimum(
    name: str, scale: float, minimum: float, steps: int, value: float, data: Any
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    found = scheduled(scale, name, minimum, step, steps, value)
    assert found == pytest.approx(reference.schedule(scale, name, minimum, step, steps, value), abs=1e-5)
    if name == "Constant":
        assert found == scale
    else:
        assert min(scale, minimum) - 1e-9 <= found <= max(scale, minimum) + 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_step_is_the_first_of_many(name: str) -> None:
    """The share of the steps would be 0 / 0."""
    assert scheduled(10, name, 2, 0, 1, 3.0) == scheduled(10, name, 2, 0, 20, 3.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_beyond_the_last_is_the_last(name: str) -> None:
    """Samplers that call the model once more than they have steps."""
    assert scheduled(10, name, 2, 20, 20, 3.0) == scheduled(10, name, 2, 19, 20, 3.0)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("Linear Down", 10, 2),
        ("Cosine Down", 10, 2),
        ("Half Cosine Down", 10, 2 + 8 * math.cos(1)),
        ("Linear Up", 2, 10),
        ("Cosine Up", 2, 10),
        ("Half Cosine Up", 2, 10 - 8 * math.cos(1)),
        ("Power Up", 2, 10),
        ("Power Down", 10, 2),
    ],
)
def test_schedules_begin_and_end_where_their_names_say(name: str, first: float, last: float) -> None:
    assert scheduled(10, name, 2, 0, 20, 3.0) == pytest.approx(first)
    assert scheduled(10, name, 2, 19, 20, 3.0) == pytest.approx(last)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_a_picture_does_not_depend_on_its_batch(form: dict[str, Any]) -> None:
    guided, model = (torch.from_numpy(latents(seed, (3, 4, 16, 16), 2.0 - seed)).float() for seed in (0, 1))
    guided[1] *= 10  # a batch-wide measure would be this image's
    together = mimic_threshold(guided, model, **form)
    alone = torch.cat([mimic_threshold(guided[i : i + 1], model[i : i + 1], **form) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("level", [0.0, 1.0, -3e4])
def test_flat_predictions_are_left_alone(form: dict[str, Any], level: float) -> None:
    flat, varied = torch.full((1, 4, 8, 8), level), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for model in (flat, varied):
        assert torch.allclose(mimic_threshold(flat, model, **form), flat, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(mimic_threshold(varied, flat, **form)).all()


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_latents_stay_finite(form: dict[str, Any], side: int) -> None:
    guided, model = torch.randn(2, 2, 4, side, side, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(mimic_threshold(guided, model, **form)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", EVERY_FORM)
def test_half_precision_goes_in_and_comes_out(form: dict[str, Any], dtype: torch.dtype) -> None:
    guided, model = (torch.from_numpy(latents(seed, (2, 4, 8, 8), 3.0)).to(dtype) for seed in (0, 1))
    found = mimic_threshold(guided, model, **form)
    assert found.dtype == dtype
    assert torch.equal(found, mimic_threshold(guided.float(), model.float(), **form).to(dtype))


def test_from_the_mean_the_range_never_exceeds_the_mimicked_one() -> None:
    guided, model = (torch.from_numpy(latents(seed, (2, 4, 8, 8), 6.0 - 5 * seed)).float() for seed in (0, 1))
    found = mimic_threshold(guided, model, share=0.95)
    reach = (found - guided.mean((2, 3), keepdim=True)).abs().amax((2, 3))
    wanted = (model - model.mean((2, 3), keepdim=True)).abs().amax((2, 3))
    assert (reach <= wanted * (1 + 1e-5)).all()
    small = guided / 100
    assert torch.allclose(mimic_threshold(small, model, share=0.95), small, atol=1e-6)  # a small range is left alone


def test_more_pixels_than_torchs_quantile_takes() -> None:
    large = torch.zeros(1, 1, 1, 2**24 + 2)
    large[..., : 2**22] = 3.0
    assert mimic_threshold(large, large / 3, share=0.9, startpoint="ZERO").max() < 3.0


def test_rescaling_agrees_with_diffusers() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    guided, cond = (torch.from_numpy(latents(seed, (3, 4, 8, 8), 4.0 - seed)).float() for seed in (0, 1))
    assert torch.allclose(rescale(guided, cond, 0.7), rescale_noise_cfg(guided, cond, 0.7), atol=1e-5)
