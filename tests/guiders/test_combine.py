"""Ways to combine predictions: as diffusers' guiders, or as a plain reference, and image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.guiders.apg import Momentum, apg
from lib_methods.guiders.mahiro import mahiro
from lib_methods.guiders.skimmed import skim
from lib_methods.guiders.zero_star import cfg_zero_star
from tests.guiders import reference

SHAPE = (3, 4, 8, 8)
FORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "skimmed": lambda base, direction, scale: skim(base, direction, scale, 5.0),
    "apg": lambda base, direction, scale: apg(base, direction, scale, eta=0.2, norm=4.0, momentum=Momentum(-0.5)),
    "cfg zero star": cfg_zero_star,
    "mahiro": mahiro,
}
EVERY = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def predictions(seed: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
    """The base, and the direction to the prediction with the prompt, as similar as they are at work."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    return base.to(**options), (0.5 * torch.randn(SHAPE, generator=rng, dtype=torch.float64)).to(**options)


@given(st.integers(0, 1000), st.floats(1.1, 30), st.floats(0, 10))
def test_skimmed_cfg_equals_the_reference(seed: int, scale: float, skimming: float) -> None:
    base, direction = predictions(seed)
    wanted = reference.skim(base.numpy(), (base + direction).numpy(), scale, skimming)
    assert torch.allclose(skim(base, direction, scale, skimming), torch.from_numpy(wanted), atol=1e-5)


@given(st.integers(0, 1000), st.floats(1.1, 30))
def test_mahiro_equals_the_reference(seed: int, scale: float) -> None:
    base, direction = predictions(seed)
    wanted = reference.mahiro(base.numpy(), (base + direction).numpy(), scale)
    assert torch.allclose(mahiro(base, direction, scale), torch.from_numpy(wanted), atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", [0.0, 2.5, 100.0])
@pytest.mark.parametrize("momentum", [None, -0.5])
def test_apg_equals_diffusers_over_several_steps(eta: float, norm: float, momentum: float | None) -> None:
    from diffusers.guiders import AdaptiveProjectedGuidance

    scale = 7.5
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=scale - 1,  # the paper's form, which begins at the prediction with the prompt
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=norm,
        eta=eta,
        use_original_formulation=True,
    )
    ours = None if momentum is None else Momentum(momentum)
    for step in range(3):
        base, direction = predictions(step, dtype=torch.float32)
        theirs.set_state(step=step, num_inference_steps=3, timestep=torch.tensor(0))
        theirs.prepare_inputs({"x": (base + direction, base)})
        wanted = theirs.forward(base + direction, base).pred
        assert torch.allclose(apg(base, direction, scale, eta=eta, norm=norm, momentum=ours), wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [2.0, 7.5, 20.0])
def test_cfg_zero_star_equals_diffusers(scale: float) -> None:
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    base, direction = predictions(dtype=torch.float32)
    theirs = ClassifierFreeZeroStarGuidance(guidance_scale=scale, zero_init_steps=0)
    theirs.set_state(step=1, num_inference_steps=3, timestep=torch.tensor(0))
    wanted = theirs.forward(base + direction, base).pred
    assert torch.allclose(cfg_zero_star(base, direction, scale), wanted, atol=1e-5)


def test_apg_with_nothing_taken_away_is_plain_guidance() -> None:
    base, direction = predictions()
    assert torch.allclose(apg(base, direction, 7.5, eta=1.0), base + 7.5 * direction)


def test_skimmed_cfg_at_the_skimming_scale_is_plain_guidance() -> None:
    base, direction = predictions()
    assert torch.equal(skim(base, direction, 5.0, 5.0), base + 5.0 * direction)


@EVERY
def test_an_image_does_not_depend_on_its_batch(form: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    base, direction = predictions()
    base[1] *= 10  # a batch-wide measure would be this image's
    alone = torch.cat([form(base[i : i + 1], direction[i : i + 1], 9.0) for i in range(len(base))])
    assert torch.allclose(form(base, direction, 9.0), alone, rtol=1e-9, atol=1e-9)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_comes_out(form: Callable[..., Tensor], dtype: torch.dtype) -> None:
    found = form(*predictions(dtype=dtype), 9.0)
    assert found.dtype == dtype
    assert found.isfinite().all()


@EVERY
def test_flat_predictions_stay_finite(form: Callable[..., Tensor]) -> None:
    flat = torch.zeros(SHAPE)
    for base, direction in ((flat, flat), (flat, predictions(dtype=torch.float32)[1]), (flat + 1, flat)):
        assert form(base, direction, 9.0).isfinite().all()


def test_momentum_belongs_to_one_pass() -> None:
    passes = [Momentum(-0.5), Momentum(-0.5)]
    steps = [predictions(step, dtype=torch.float32)[1] for step in range(3)]
    first, again = ([momentum(step) for step in steps] for momentum in passes)
    assert all(torch.equal(*pair) for pair in zip(first, again))
    assert torch.equal(first[1], steps[1] - 0.5 * steps[0])
