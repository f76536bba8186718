"""A sampler without its own noise for one batch, or with noise that it is given, in the standalone host."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from lib_methods.denoiser import OwnNoise, Sampling, Unsupported, editing_of
from tests.hosts.seam import acting, job
from tests.standalone.conftest import Running

NOISY: dict[str, dict[str, Any]] = {
    "Euler a": {},
    "DPM++ SDE": {},
    "DPM++ 2M SDE": {},
    "Euler": {"s_churn": 2.0},
    "DDIM": {"eta": 0.7},
}


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
    """Then as before: the next batch gives the same images, with the same settings, as without it."""
    usual = {"eta": None, **NOISY[name]}
    fields = job(kind, name, n_iter=2, **usual)
    steady = job(kind, name, n_iter=2, eta=0.0, s_churn=0.0)
    told: list[tuple[bool, bool]] = []

    def act(sampling: Any) -> None:
        p = sampling.p
        if p.iteration:
            return
        before = dict(vars(p)), dict(p.extra_generation_params)
        was = editing_of(sampling).is_stochastic
        editing_of(sampling).without_noise()
        editing_of(sampling).without_noise()
        known = editing_of(sampling).start_latent(), editing_of(sampling).sigmas
        again = editing_of(type(sampling)(p, sampling.latent, sampling._noise))
        told.append((was, again.is_stochastic or editing_of(sampling).is_stochastic))
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

    def without(sampling: Sampling) -> None:
        editing_of(sampling).without_noise()

    def look(sampling: Sampling) -> None:
        seen.append(editing_of(sampling).is_stochastic)

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
        editing_of(sampling).without_noise()

    def fail(*args: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(sd_samplers_common.Sampler, "launch_sampling", fail)
    with pytest.raises(RuntimeError, match="in the middle"), acting(host, without, False):
        host.latents(**job(kind, "Euler a", eta=0.5))
    ((p, sampler),) = kept
    assert p.eta == 0.5
    assert "initialize" not in vars(sampler)
    assert "Eta" not in p.extra_generation_params


@pytest.mark.parametrize("eta", [None, 0.5])
@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
def test_euler_a_takes_the_noise_that_it_is_given(host: Running, kind: str, eta: float | None) -> None:
    """With the noise that it would have drawn it gives the same image, with other noise another."""
    fields = job(kind, "Euler a", eta=eta, batch_size=2)
    asked: list[int] = []

    def pass_on(sampling: Sampling) -> None:
        assert editing_of(sampling).own_noise == OwnNoise(1.0 if eta is None else eta, 1.0)
        steps = len(editing_of(sampling).sigmas) - 1

        def draw() -> Tensor:
            asked.append(steps)
            return editing_of(sampling).draw_noise()

        editing_of(sampling).give_noise(draw)

    def silence(sampling: Sampling) -> None:
        latents = editing_of(sampling).start_latent()
        editing_of(sampling).give_noise(lambda: torch.zeros_like(latents))

    plain = batches(host, fields)
    assert torch.equal(batches(host, fields, pass_on)[0], plain[0])
    assert len(asked) == asked[0] - 1  # none for the last step, which ends at 0
    assert not torch.equal(batches(host, fields, silence)[0], plain[0])


@pytest.mark.parametrize("name", ["Euler", "DDIM", "DPM++ SDE", "LCM"])
def test_other_samplers_take_no_noise(host: Running, name: str) -> None:
    seen: list[Any] = []

    def look(sampling: Sampling) -> None:
        seen.append(editing_of(sampling).own_noise)
        with pytest.raises(Unsupported, match="does not take its noise"):
            editing_of(sampling).give_noise(editing_of(sampling).draw_noise)

    batches(host, job("txt2img", name, eta=None), look)
    assert seen == [None]
