"""A sampler without noise of its own for one batch, in the standalone host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from lib_methods.hosts import HostSampling
from tests.pix2pix_zero.seam import acting, job
from tests.standalone.conftest import Running

NOISY: dict[str, dict[str, Any]] = {
    "Euler a": {},
    "DPM++ SDE": {},
    "DPM++ 2M SDE": {},
    "Euler": {"s_churn": 2.0},
    "DDIM": {"eta": 0.7},
}


@pytest.fixture
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[])


def batches(host: Running, fields: dict[str, Any], act: Any = None) -> list[Tensor]:
    """What each sampling of a job gives; `act` is a script of first passes."""
    from modules import sd_samplers_common

    found: list[Tensor] = []
    launch = sd_samplers_common.Sampler.launch_sampling

    def watched(self: Any, *args: Any) -> Any:
        made = launch(self, *args)
        found.append(made.clone())
        return made

    with patch.object(sd_samplers_common.Sampler, "launch_sampling", watched):
        if act is None:
            host.latents(**fields)
        else:
            with acting(host, act, False):
                host.latents(**fields)
    return found


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
@pytest.mark.parametrize("name", NOISY)
def test_without_noise_a_sampler_is_steady_for_one_batch(host: Running, name: str, kind: str) -> None:
    """And then as it was: the batch after it draws what it would have drawn, by the settings that it would have had."""
    usual = {"eta": None, **NOISY[name]}
    fields = job(kind, name, n_iter=2, **usual)
    steady = job(kind, name, n_iter=2, eta=0.0, s_churn=0.0)
    told: list[tuple[bool, bool]] = []

    def act(sampling: Any) -> None:
        p = sampling.p
        if p.iteration:
            return
        before = dict(vars(p)), dict(p.extra_generation_params)
        was = sampling.is_stochastic
        sampling.without_noise()
        sampling.without_noise()
        known = sampling.start_latent(), sampling.sigmas
        again = type(sampling)(p, sampling._latent, sampling._noise)
        told.append((was, again.is_stochastic or sampling.is_stochastic))
        assert torch.equal(again.start_latent(), known[0]) and torch.equal(again.sigmas, known[1])
        assert (dict(vars(p)), dict(p.extra_generation_params)) == before

    first, wanted = batches(host, fields, act), batches(host, steady)
    assert told == [(True, False)]
    assert torch.equal(first[0], wanted[0])
    plain = batches(host, fields)
    assert not torch.equal(first[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1:], plain[1:], strict=True))


def test_the_second_pass_of_hires_fix_keeps_its_noise(host: Running) -> None:
    fields = job("Hires.fix", "Euler a", eta=None)
    seen: list[bool] = []

    def without(sampling: HostSampling) -> None:
        sampling.without_noise()

    def look(sampling: HostSampling) -> None:
        seen.append(sampling.is_stochastic)

    with acting(host, look, True):
        first = batches(host, fields, without)
    assert torch.equal(first[0], batches(host, {**fields, "eta": 0.0})[0])
    assert seen == [True]


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
def test_a_job_that_fails_takes_nothing_along(host: Running, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import sd_samplers_common

    kept: list[Any] = []

    def without(sampling: Any) -> None:
        kept.append((sampling.p, sampling.p.sampler))
        sampling.without_noise()

    def fail(*args: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(sd_samplers_common.Sampler, "launch_sampling", fail)
    with pytest.raises(RuntimeError, match="in the middle"), acting(host, without, False):
        host.latents(**job(kind, "Euler a", eta=0.5))
    ((p, sampler),) = kept
    assert p.eta == 0.5
    assert "initialize" not in vars(sampler)
    assert "Eta" not in p.extra_generation_params
