"""The pure parts: the three-way formula with its short cuts, schedules, and fitting an image to a size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.denoiser import Needs, RowPlan
from lib_methods.image_cfg import formulas
from lib_methods.image_cfg.formulas import SCHEDULES, scale_at
from lib_methods.image_cfg.settings import ImageCfgSettings
from lib_methods.pictures.fit import FITS, fit

SCALES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.5])
UNKNOWN = torch.full((2, 4, 3, 3), math.nan)  # what is not computed must not be used


def published(full: torch.Tensor, image: torch.Tensor, empty: torch.Tensor, s_t: float, s_i: float) -> torch.Tensor:
    """Equation 3 of arXiv 2211.09800, term by term."""
    return empty + s_i * (image - empty) + s_t * (full - image)


def follow(plan: RowPlan, cond: torch.Tensor, image: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """What `RowPlan` says to do with the rows that it names."""
    image = image if plan.with_picture else UNKNOWN
    empty = empty if plan.without_picture else UNKNOWN
    if plan.with_picture and plan.without_picture:
        return formulas.base(image, empty, plan.image_scale) + plan.text_scale * (cond - image)
    if plan.with_picture:
        return image + plan.text_scale * (cond - image)
    if plan.without_picture:
        return empty + plan.text_scale * (cond - empty)
    return cond


@given(s_t=SCALES, s_i=SCALES, base=st.booleans(), empty=st.booleans(), seed=st.integers(0, 99))
def test_every_plan_gives_the_published_sum(s_t: float, s_i: float, base: bool, empty: bool, seed: int) -> None:
    rows = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plan = formulas.plan(s_t, s_i, Needs(base=base, empty=empty))
    torch.testing.assert_close(
        follow(plan, rows[0], rows[1], rows[2]), published(rows[0], rows[1], rows[2], s_t, s_i), rtol=0, atol=1e-9
    )
    assert plan.with_picture or not base
    assert plan.without_picture or not empty


@given(s_t=SCALES, s_i=SCALES, weights=st.lists(st.sampled_from([0.3, 0.7, 1.0]), min_size=2, max_size=3))
def test_weights_under_and_that_do_not_add_up_to_one_cost_no_term(s_t: float, s_i: float, weights: list[float]) -> None:
    generator = torch.Generator().manual_seed(1)
    image, empty, *parts = torch.randn(2 + len(weights), 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    one = abs(sum(weights) - 1) < 1e-9
    plan = formulas.plan(s_t, s_i, Needs(sums_to_one=one))
    cond = image + sum(w * (part - image) for w, part in zip(weights, parts))
    wanted = empty + s_i * (image - empty) + s_t * sum(w * (part - image) for w, part in zip(weights, parts))
    torch.testing.assert_close(follow(plan, cond, image, empty), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("s_t", "s_i", "extra"), [(7.5, 1.5, 2), (7.5, 1.0, 1), (1.5, 1.5, 1), (1.0, 1.0, 0), (1.0, 1.5, 2), (0.0, 0.0, 1)]
)
def test_no_row_is_computed_that_the_sum_does_not_need(s_t: float, s_i: float, extra: int) -> None:
    plan = formulas.plan(s_t, s_i, Needs())
    assert plan.with_picture + plan.without_picture == extra


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_begin_and_end_where_they_should(schedule: str) -> None:
    values = [scale_at(schedule, 7.5, 1.5, i / 10) for i in range(11)]
    assert values[0] == 7.5
    assert values[-1] == pytest.approx(7.5 if schedule == "constant" else 1.5)
    assert all(one >= other for one, other in zip(values, values[1:]))
    assert values[5] == pytest.approx(7.5 if schedule == "constant" else 4.5)


def test_outside_of_the_interval_both_scales_are_one() -> None:
    chosen = ImageCfgSettings(image_scale=2.0, text_scale=0.0, start=0.2, end=0.8)
    scales = [chosen.scales_at(step, 10, 7.0) for step in range(10)]
    assert scales == [(1.0, 1.0)] * 2 + [(7.0, 2.0)] * 6 + [(1.0, 1.0)] * 2


def test_a_schedule_runs_over_the_guided_steps() -> None:
    chosen = ImageCfgSettings(image_scale=2.0, image_schedule="linear", image_end_scale=1.0, end=0.5, text_scale=3.0)
    assert [chosen.scales_at(step, 10, 7.0)[1] for step in range(5)] == [2.0, 1.75, 1.5, 1.25, 1.0]
    assert chosen.scales_at(0, 1, 7.0) == (1.0, 1.0)  # round(0.5) of one step is none
    assert ImageCfgSettings(text_schedule="cosine").scales_at(0, 1, 7.0) == (7.0, 1.5)


def test_the_second_pass_has_scales_of_its_own() -> None:
    chosen = ImageCfgSettings(image_scale=2.0, text_scale=5.0, hires_image_scale=1.2)
    assert (chosen.for_hires().image_scale, chosen.for_hires().text_scale) == (1.2, 5.0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_scale": -1}, "Image scale must be between 0 and 10"),
        ({"text_scale": math.nan}, "Text scale must be between 0 and 30"),
        ({"text_scale": True}, "Text scale must be a number"),
        ({"start": 0.9, "end": 0.1}, "Swap them"),
        ({"fit": "squeeze"}, "Fit must be one of: crop, pad, stretch"),
        ({"images": ("../secret.png",)}, "by their hash"),
        ({"hires_source": ["first pass"]}, "In Hires.fix must be one of"),
    ],
)
def test_settings_say_what_is_wrong(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        ImageCfgSettings(**fields)  # type: ignore[arg-type]


@given(
    width=st.integers(1, 200), height=st.integers(1, 200), to=st.tuples(st.integers(1, 96), st.integers(1, 96)),
    how=st.sampled_from(FITS),
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_any_picture_fits_any_size_without_foreign_colour(
    width: int, height: int, to: tuple[int, int], how: str
) -> None:
    fitted = fit(Image.new("RGB", (width, height), (200, 100, 50)), *to, how)
    assert fitted.size == to
    assert np.unique(np.asarray(fitted).reshape(-1, 3), axis=0).tolist() == [[200, 100, 50]]


def test_the_three_ways_to_fit() -> None:
    """An image of three upright stripes, twice as wide as high, in a square."""
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, :32, 0] = stripes[:, 32:96, 1] = stripes[:, 96:, 2] = 255
    crop, pad, stretch = (np.asarray(fit(Image.fromarray(stripes), 64, 64, how)) for how in ("crop", "pad", "stretch"))
    assert (crop[:, 4:60, 1] > 250).all() and (crop[:, 4:60, 0] < 5).all()
    assert (stretch[:, 2:12, 0] > 250).all() and (stretch[:, 20:44, 1] > 250).all()
    assert (pad[:, 2:12, 0] > 250).all(), "the stripe goes on to the upper and lower border"
    assert (pad[16:48] == np.asarray(Image.fromarray(stripes).resize((64, 32), Image.Resampling.LANCZOS))).all()
