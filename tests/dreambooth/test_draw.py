"""Sampling is DPM-Solver++(2M) as diffusers has it, and a picture depends on its own prompt and seed alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from lib_methods.checkpoints.schedule import NoiseSchedule
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.model.sampler import draw, solve
from standalone.engine.model import alpha_schedule

from .models import FAMILIES, load

SCHEDULE = alpha_schedule(NoiseSchedule())
ZERO_SNR = torch.from_numpy(NoiseSchedule(zero_terminal_snr=True).alphas_cumprod()).float()


def toy(latents: Tensor, time: int) -> Tensor:
    """A model with something to solve: not linear in the latents, changing with time."""
    return torch.tanh(latents * (0.3 + time / 1000)) + 0.1 * torch.sin(latents.roll(1, -1) * 3)


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_it_is_the_solver_of_diffusers(parameterization: str, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if parameterization == "v" else "epsilon",
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = noise
    for time in scheduler.timesteps:
        expected = scheduler.step(toy(expected, int(time)), time, expected).prev_sample
    found = solve(toy, noise, SCHEDULE, parameterization, steps)
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-4)


def test_more_steps_come_nearer_to_the_solution() -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    exact = solve(toy, noise, SCHEDULE, "eps", 900)
    errors = [float((solve(toy, noise, SCHEDULE, "eps", steps) - exact).abs().mean()) for steps in (5, 20, 80)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_a_schedule_down_to_no_signal_is_solved(parameterization: str) -> None:
    noise = torch.randn(1, 4, 8, 8)
    found = solve(toy, noise, ZERO_SNR, parameterization, 20)
    assert bool(torch.isfinite(found).all())
    # without signal a model of v says minus the picture at once, whatever the noise
    perfect: Callable[[Tensor, int], Tensor] = lambda x, t: -torch.ones_like(x)  # noqa: E731
    if parameterization == "v":
        one = solve(perfect, noise, ZERO_SNR, "v", 1)
        assert torch.allclose(one, torch.ones_like(one))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_the_same_in_any_company(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    prompts, seeds = ["a dog", "a ohwx dog in the snow", "a cat"], [7, 8, 9]
    together = draw(model, prompts, size=(48, 64), steps=3, cfg_scale=4.0, seeds=seeds)
    assert together.shape == (3, 3, 64, 48) and together.abs().max() <= 1 and together.dtype == torch.float32
    for index in range(3):
        alone = draw(model, [prompts[index]], size=(48, 64), steps=3, cfg_scale=4.0, seeds=[seeds[index]])
        assert torch.allclose(alone[0], together[index], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_guidance_leads_away_from_the_empty_prompt(tmp_path: Path) -> None:
    model = load(tmp_path)

    def made(prompt: str, cfg_scale: float) -> Tensor:
        return draw(model, [prompt], size=(64, 64), steps=2, seeds=[1], cfg_scale=cfg_scale)

    assert not torch.equal(made("a dog", 3.0), made("a dog", 1.0))
    # guided away from itself a prompt stays what it is
    assert torch.allclose(made("", 3.0), made("", 1.0), atol=1e-4)


def test_a_prompt_longer_than_one_chunk_is_drawn(tmp_path: Path) -> None:
    model = load(tmp_path)
    long = draw(model, ["a dog " * 60], size=(64, 64), steps=1, seeds=[1])
    assert not torch.allclose(long, draw(model, ["a dog " * 30], size=(64, 64), steps=1, seeds=[1]), atol=1e-3)


def test_a_stop_from_outside_ends_the_drawing(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def each_step(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(load(tmp_path), ["a dog"], size=(64, 64), steps=5, seeds=[1], each_step=each_step)
    assert seen == [(1, 5), (2, 5)]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    model = load(tmp_path)
    with pytest.raises(DreamBoothError, match="50x64"):
        draw(model, ["a dog"], size=(50, 64), seeds=[1])
    with pytest.raises(ValueError, match="one seed for each prompt"):
        draw(model, ["a dog"], size=(64, 64), seeds=[1, 2])
    with torch.no_grad():
        model.unet.get_parameter("conv_out.weight").fill_(float("nan"))
    with pytest.raises(DreamBoothError, match="not finite"):
        draw(model, ["a dog"], size=(64, 64), steps=1, seeds=[1])
