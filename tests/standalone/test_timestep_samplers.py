"""Samplers in alpha space: against diffusers, against the equation, and with the calls that the WebUI makes."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.engine.timestep_samplers import sample_ddim, sample_unipc, unipc_timesteps
from tests.standalone.toy import ABAR, BETAS, Draws, Guided, Toy, assert_close, by_diffusers, noise


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
