"""Samplers against diffusers' schedulers: same model, same noise, same result, and the WebUI's calls."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.engine import samplers
from standalone.engine.denoiser import LCMDenoiser, SigmaDenoiser
from standalone.engine.timestep_samplers import sample_ddim, sample_unipc, unipc_timesteps
from standalone.host.sampling import schedulers as schedules
from tests.standalone.engine.toy import ABAR, BETAS, SHAPE, Draws, Guided, Toy, assert_close, by_diffusers, noise

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
    """The draw of the half step is a part of the whole step's; with eta 0 nothing is drawn."""
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


def ddim_by_diffusers(steps: int) -> Any:
    """diffusers' DDIM at the timesteps 1, 1 + 1000 / steps ..., without the last, which the WebUI leaves out."""
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = scheduler.timesteps[:-1]
    return scheduler


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_ddim_is_diffusers_ddim(parameterization: str) -> None:
    toy = Toy()
    found = sample_ddim(Guided(Toy(parameterization)), noise(), torch.arange(20) * 50 + 1)
    assert_close(found, by_diffusers(ddim_by_diffusers(20), toy, noise()))
    assert toy.calls == [951 - 50 * i for i in range(19)]


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_is_diffusers_ddim(eta: float) -> None:
    found = sample_ddim(Guided(Toy()), noise(), torch.arange(10) * 100 + 1, noise=Draws(), eta=eta)
    expected = by_diffusers(ddim_by_diffusers(10), Toy(), noise(), eta=eta, generator=Draws().generator)
    assert_close(found, expected)


@given(st.lists(st.integers(0, 999), max_size=6, unique=True))
@settings(max_examples=40, deadline=None)
def test_ddim_at_any_timesteps_is_the_equation(timesteps: list[int]) -> None:
    """Equation 12 without noise, in double precision: from each timestep to the one before it, ending at the first."""
    timesteps = sorted(timesteps)
    toy, x = Toy(), noise().double()
    for now, following in zip(timesteps[::-1], timesteps[::-1][1:]):
        abar, after = ABAR[now].double(), ABAR[following].double()
        eps = toy.eps(x.float(), torch.tensor([now])).double()
        x = after.sqrt() * (x - (1 - abar).sqrt() * eps) / abar.sqrt() + (1 - after).sqrt() * eps
    found = sample_ddim(Guided(Toy()), noise(), torch.tensor(timesteps, dtype=torch.long))
    assert_close(found, x.float())


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("skip_type", ["time_uniform", "time_quadratic", "logSNR"])
def test_unipc_solves_the_same_equation_as_ddim(variant: str, steps: int, skip_type: str) -> None:
    """With many steps all solvers of one equation agree; with few the result is at least finite."""
    toy = Toy()
    timesteps = torch.arange(steps) * (1000 // max(steps, 1)) + 1
    found = sample_unipc(Guided(toy), noise(), timesteps, variant=variant, skip_type=skip_type)
    assert len(toy.calls) == steps
    assert torch.isfinite(found).all()
    if steps == 20:
        every = torch.arange(1000)
        fine = sample_ddim(Guided(Toy()), noise(), every)
        coarse = sample_ddim(Guided(Toy()), noise(), torch.cat([every[:1], every[49::50]]))
        assert (found - fine).abs().mean() < (coarse - fine).abs().mean()


@pytest.mark.parametrize("skip_type", ["time_uniform", "time_quadratic", "logSNR"])
@pytest.mark.parametrize("start", [999.0, 401.0])
def test_unipc_spreads_its_timesteps_as_asked(skip_type: str, start: float) -> None:
    path = unipc_timesteps(ABAR.double().numpy(), 8, start, skip_type)
    abar = np.exp(np.interp(path, np.arange(1000), np.log(ABAR.double().numpy())))
    assert path[0] == pytest.approx(start, abs=1e-6)
    assert path[-1] == pytest.approx(0, abs=1e-6)
    even = {
        "time_uniform": path,
        "time_quadratic": np.sqrt(path + 1),
        "logSNR": np.log(abar / (1 - abar)),
    }[skip_type]
    steps = np.diff(even)
    assert steps == pytest.approx(steps.mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["sample_ddim", "sample_unipc"])
def test_the_callback_of_timestep_samplers_hears_of_every_step(name: str) -> None:
    seen: list[tuple[int, int]] = []
    toy = Toy()
    sample: Any = {"sample_ddim": sample_ddim, "sample_unipc": sample_unipc}[name]
    sample(Guided(toy), noise(), torch.arange(5) * 200 + 1, callback=lambda d: seen.append((d["i"], len(toy.calls))))
    if name == "sample_ddim":
        assert seen == [(0, 1), (1, 2), (2, 3), (3, 4)]
    else:
        assert seen == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5)], "after the corrector, so one call later"
