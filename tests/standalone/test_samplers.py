"""Samplers in sigma space against diffusers' schedulers: same model, same noise, same result."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.engine import samplers
from standalone.engine.denoiser import LCMDenoiser, SigmaDenoiser
from standalone.host.sampling import schedulers as schedules
from tests.standalone.toy import BETAS, SHAPE, Draws, Toy, assert_close, by_diffusers, noise

# ten steps from 999 to 0 are whole timesteps, so that both sides mean the same by them
STEPS = 10


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize("karras", [False, True])
def test_euler_is_diffusers_euler(karras: bool, parameterization: str) -> None:
    toy = Toy(parameterization)
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, use_karras_sigmas=karras, prediction_type="epsilon" if parameterization == "eps" else "v_prediction"
    )
    scheduler.set_timesteps(STEPS)
    denoiser = SigmaDenoiser(toy)
    sigmas = denoiser.get_sigmas(STEPS)
    if karras:
        sigmas = schedules.karras(STEPS, float(denoiser.sigma_min), float(denoiser.sigma_max))
    assert torch.allclose(sigmas, scheduler.sigmas, rtol=1e-4)
    found = samplers.sample_euler(denoiser, noise() * sigmas[0], sigmas)
    assert_close(found, by_diffusers(scheduler, toy, noise()))


def test_heun_is_diffusers_heun() -> None:
    toy = Toy()
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(STEPS)
    denoiser = SigmaDenoiser(toy)
    sigmas = denoiser.get_sigmas(STEPS)
    found = samplers.sample_heun(denoiser, noise() * sigmas[0], sigmas)
    assert len(toy.calls) == 2 * STEPS - 1, "two calls a step, one in the last"
    assert_close(found, by_diffusers(scheduler, toy, noise()))


def test_euler_ancestral_is_diffusers_euler_ancestral() -> None:
    toy = Toy()
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(STEPS)
    denoiser = SigmaDenoiser(toy)
    sigmas = denoiser.get_sigmas(STEPS)
    found = samplers.sample_euler_ancestral(denoiser, noise() * sigmas[0], sigmas, noise=Draws())
    assert_close(found, by_diffusers(scheduler, toy, noise(), generator=Draws().generator))


@pytest.mark.parametrize(
    ("name", "options"), [("sample_dpmpp_2m", {}), ("sample_dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++"})]
)
def test_dpmpp_2m_is_diffusers_multistep_solver(name: str, options: dict[str, str]) -> None:
    toy = Toy()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, solver_order=2, use_karras_sigmas=True, lower_order_final=True, **options
    )
    scheduler.set_timesteps(STEPS)
    denoiser = SigmaDenoiser(toy)
    sigmas = torch.as_tensor(scheduler.sigmas)
    # the multistep scheduler works in alpha space and rounds its timesteps; give our model the same ones
    rounded = {round(float(s), 4): float(t) for s, t in zip(sigmas, scheduler.timesteps)}

    def rounded_timestep(sigma: torch.Tensor, quantize: bool | None = None) -> torch.Tensor:
        return torch.full(sigma.shape, rounded[round(float(sigma.flatten()[0]), 4)])

    denoiser.sigma_to_t = rounded_timestep  # type: ignore[method-assign]
    scale = float((1 + sigmas[0] ** 2) ** 0.5)
    kwargs: dict[str, Any] = {"noise": Draws()} if options else {}
    found = getattr(samplers, name)(denoiser, noise() * scale, sigmas, **kwargs)
    expected = by_diffusers(scheduler, toy, noise(), **({"generator": Draws().generator} if options else {}))
    assert_close(found, expected)


def test_lcm_is_diffusers_lcm() -> None:
    toy = Toy()
    scheduler = diffusers.LCMScheduler(**BETAS, original_inference_steps=50)
    scheduler.set_timesteps(50)
    denoiser = LCMDenoiser(toy)
    sigmas = denoiser.get_sigmas(50)
    scale = float((1 + sigmas[0] ** 2) ** 0.5)
    found = samplers.sample_lcm(denoiser, noise() * scale, sigmas, noise=Draws())
    assert toy.calls == [float(t) for t in scheduler.timesteps]
    assert_close(found, by_diffusers(scheduler, toy, noise(), generator=Draws().generator), 1e-3)


def exact_x0(std: float) -> Any:
    """The perfect denoiser of Gaussian data with standard deviation `std`."""
    return lambda x, sigma, **kwargs: x * (std**2 / (std**2 + sigma.reshape(-1, 1, 1, 1) ** 2))


@pytest.mark.parametrize("name", ["sample_euler_ancestral", "sample_dpmpp_sde", "sample_dpmpp_2m_sde"])
def test_stochastic_samplers_keep_the_distribution(name: str) -> None:
    """With a perfect denoiser of Gaussian data, what comes out has the spread of the data."""
    torch.manual_seed(0)
    shape, std = (8, 4, 16, 16), 0.7
    sigmas = schedules.karras(60, 0.03, 14.6)
    x = torch.randn(shape) * math.sqrt(14.6**2 + std**2)
    found = getattr(samplers, name)(exact_x0(std), x, sigmas, noise=lambda a, b: torch.randn(shape))
    assert abs(float(found.std()) - std) < 0.05


def test_the_two_noises_of_dpmpp_sde_belong_to_one_motion() -> None:
    """The draw of the half step is a part of the whole step's; with eta 0 none is made at all."""
    drawn: list[tuple[float, float]] = []

    def count(sigma: float, after: float) -> torch.Tensor:
        drawn.append((sigma, after))
        return torch.zeros(SHAPE)

    sigmas = schedules.karras(4, 0.03, 14.6)
    toy = Toy()
    samplers.sample_dpmpp_sde(SigmaDenoiser(toy), noise() * 14.6, sigmas, noise=count)
    assert len(toy.calls) == 2 * 4 - 1
    assert all(a > b for a, b in drawn)
    assert [b for _, b in drawn[:1]] == [a for a, _ in drawn[1:2]], "the second draw goes on where the first ended"
    drawn.clear()
    samplers.sample_dpmpp_sde(SigmaDenoiser(Toy()), noise() * 14.6, sigmas, noise=count, eta=0)
    assert drawn == []


@given(st.floats(0.0, 999.0))
@settings(max_examples=50)
def test_timesteps_and_sigmas_are_inverse(t: float) -> None:
    denoiser = SigmaDenoiser(Toy())
    back = denoiser.sigma_to_t(denoiser.t_to_sigma(torch.tensor([t])))
    assert abs(float(back) - t) < 0.01


@given(
    st.integers(1, 60),
    st.sampled_from(
        [
            name
            for name in vars(schedules)
            if name
            in (
                "uniform",
                "karras",
                "exponential",
                "polyexponential",
                "sgm_uniform",
                "kl_optimal",
                "align_your_steps",
                "simple",
                "normal",
            )
        ]
    ),
)
@settings(max_examples=60, deadline=None)
def test_schedules_fall_from_the_largest_sigma(n: int, name: str) -> None:
    denoiser = SigmaDenoiser(Toy())
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    kwargs: dict[str, Any] = {}
    if name in ("uniform", "sgm_uniform", "align_your_steps", "simple", "normal"):
        kwargs["inner_model"] = denoiser
    sigmas = getattr(schedules, name)(n=n, sigma_min=low, sigma_max=high, **kwargs)
    assert len(sigmas) == n + 1
    assert (sigmas[1:] < sigmas[:-1]).all()
    assert abs(float(sigmas[0]) - high) < 0.05
    assert float(sigmas[-1]) == 0 or name == "kl_optimal"


def test_churn_adds_noise_only_where_asked() -> None:
    plain = samplers.sample_euler(SigmaDenoiser(Toy()), noise() * 14.6, schedules.karras(8, 0.03, 14.6))
    kwargs: dict[str, Any] = {"noise": Draws(), "s_churn": 10.0}
    churned = samplers.sample_euler(SigmaDenoiser(Toy()), noise() * 14.6, schedules.karras(8, 0.03, 14.6), **kwargs)
    outside = samplers.sample_euler(
        SigmaDenoiser(Toy()), noise() * 14.6, schedules.karras(8, 0.03, 14.6), s_tmin=20.0, **kwargs
    )
    assert not torch.equal(plain, churned)
    assert torch.equal(plain, outside)


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpmpp_2m", "sample_dpmpp_sde", "sample_lcm"])
def test_the_callback_hears_of_every_step(name: str) -> None:
    seen: list[int] = []
    kwargs = {"noise": Draws()} if name in ("sample_lcm", "sample_dpmpp_sde") else {}
    sigmas = schedules.karras(5, 0.03, 14.6)
    getattr(samplers, name)(
        SigmaDenoiser(Toy()), noise() * 14.6, sigmas, callback=lambda d: seen.append(d["i"]), **kwargs
    )
    assert seen == list(range(5))
