"""Thresholds do what the paper says, an image at a time, in every solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lib_methods.cascade.settings import SOLVERS, CascadeSettings
from lib_methods.cascade.solvers import Solver, timestep_list
from lib_methods.cascade.stages import generators
from lib_methods.cascade.thresholding import Threshold, dynamic_threshold
from lib_methods.checks import SettingsError

COSINE = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}


def burnt(seed: int = 1) -> Tensor:
    return (
        3
        * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        * torch.tensor([0.1, 1.0, 3.0]).view(3, 1, 1, 1)
    )


@pytest.mark.parametrize("percentile", [0.0, 0.5, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("most", [1.0, 1.5, 1e6])
def test_dynamic_is_the_papers_formula_and_diffusers(percentile: float, most: float) -> None:
    images = burnt()
    found = dynamic_threshold(images, percentile, most)
    for image, mine in zip(images, found):
        span = min(most, max(1.0, float(torch.quantile(image.abs().flatten(), percentile))))
        torch.testing.assert_close(mine, image.clamp(-span, span) / span)
    options = {"dynamic_thresholding_ratio": percentile, "sample_max_value": most, "thresholding": True}
    torch.testing.assert_close(found, DDPMScheduler(**options)._threshold_sample(images))
    assert found.abs().max() <= 1


def test_an_image_does_not_depend_on_its_batch_and_a_calm_one_stays() -> None:
    images = burnt()
    whole = dynamic_threshold(images, 0.95, 1.5)
    assert torch.equal(whole, torch.cat([dynamic_threshold(image[None], 0.95, 1.5) for image in images]))
    calm = images[:1].clamp(-1, 1)
    assert torch.equal(dynamic_threshold(calm, 0.95, 1.5), calm)


def test_settings_win_over_the_folder() -> None:
    folder = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}
    assert Threshold.of(CascadeSettings(), folder) == Threshold("dynamic", 0.95, 1.5)
    assert Threshold.of(CascadeSettings(percentile=0.9, upper_bound=3.0), folder) == Threshold("dynamic", 0.9, 3.0)
    assert Threshold.of(CascadeSettings(), {"clip_sample": False}).kind == "none"
    assert Threshold.of(CascadeSettings(), {}).kind == "static"
    images = burnt()
    assert torch.equal(Threshold("none")(images), images)
    assert torch.equal(Threshold("static")(images), images.clamp(-1, 1))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("timesteps", ["even", "smart27"])
def test_every_solver_thresholds_every_step(name: str, timesteps: str) -> None:
    """At every timestep of every list, the solver hands its predicted image over, and ends in range."""
    seen: list[Tensor] = []

    def threshold(images: Tensor) -> Tensor:
        seen.append(images)
        return dynamic_threshold(images, 0.95, 1.5)

    steps = timestep_list(timesteps, 10, COSINE)
    solver, chance = Solver(name, COSINE, threshold, steps), generators([1, 2])
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for step in steps:
        out = 4 * torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(step)).clamp(-1, 1)
        images = solver.step(out, step, images, chance)
    assert len(seen) == len(steps) == (10 if timesteps == "even" else 27)
    assert max(float(each.abs().max()) for each in seen) > 1
    assert images.isfinite().all() and images.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("name", SOLVERS)
def test_a_unet_without_variance_is_solved_too(name: str) -> None:
    steps = timestep_list("even", 5, COSINE)
    solver = Solver(name, COSINE, Threshold("static"), steps, has_variance=False)
    images, chance = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)), generators([1])
    for step in steps:
        images = solver.step(torch.tanh(images), step, images, chance)
    assert images.shape == (1, 3, 8, 8) and images.abs().max() <= 1 + 1e-5


def test_steps_that_the_model_does_not_have_are_named() -> None:
    few: dict[str, Any] = {**COSINE, "num_train_timesteps": 100}
    assert len(timestep_list("even", 100, few)) == 100
    for asked in (("even", 101), ("smart27", 1)):
        with pytest.raises(SettingsError, match="has 100 timesteps"):
            timestep_list(*asked, few)
