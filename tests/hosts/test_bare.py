"""The seam around a bare UNet, and hosts whose latents are out of reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods import hosts
from lib_methods.denoiser import DenoiserCall, Editing, Unsupported, editing_of
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import small_unet
from tests.hosts.seam import random, spread


class Mover:
    """An editor that adds 0.3 in the second step."""

    def __init__(self, sampling: Editing) -> None:
        self.sampling = sampling
        self.sigmas: list[float] = []

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        position = self.sampling.position(call)
        self.sigmas.append(position.sigma)
        return latents + 0.3 if position.step == 1 else latents


def test_a_bare_unet_is_drawn_from_by_eulers_method() -> None:
    sampling = BareSampling(small_unet(), steps=4)
    seam: Editing = sampling
    start, editor = random((2, 4, 8, 8), 1) * 10, Mover(seam)
    seam.start_from(start)
    seam.add_editor(editor)
    cond, uncond = seam.embed(["a cat"]), seam.embed([""])
    x, sigmas = start, [float(sigma) for sigma in seam.sigmas]
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        x = x + 0.3 if i == 1 else x
        base = seam.predict(x, sigma, uncond)
        denoised = base + 3 * (seam.predict(x, sigma, cond) - base)
        x = x + (after - sigma) * (x - denoised) / sigma
    assert spread(sampling.draw(cond, uncond, 3.0), x) < 1e-5
    assert editor.sigmas == sigmas[:-1]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0


def test_its_gradients_are_exact() -> None:
    """In double precision, against central differences."""
    unet = small_unet().double()
    sampling = BareSampling(unet, steps=4)
    x, along = random((1, 4, 8, 8), 2).double(), random((1, 4, 8, 8), 3).double()
    cond = sampling.embed(["a cat"])
    with sampling.differentiable():
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(sampling.predict(leaf, 2.0, cond, gradients=True).sum(), leaf)
    h = 1e-4
    numeric = (sampling.predict(x + h * along, 2.0, cond) - sampling.predict(x - h * along, 2.0, cond)).sum() / (2 * h)
    assert float((gradient * along).sum()) == pytest.approx(float(numeric), rel=1e-6)
    assert all(p.requires_grad and p.grad is None for p in unet.parameters())


def test_texts_of_a_bare_unet_differ_and_repeat() -> None:
    sampling = BareSampling(small_unet())
    one = sampling.embed(["a cat", "a dog"]).context
    assert torch.equal(one, sampling.embed(["a cat", "a dog"]).context)
    assert not torch.equal(one[0], one[1])


def job(func: Any, **fields: Any) -> Any:
    """A host whose sampler hands x, 20 sigmas and a zero to `func`."""

    def sample(self: Any, p: Any, x: Tensor, c: Any, uc: Any, image_conditioning: Any = None) -> Any:
        levels = torch.linspace(10, 0, 21)
        return self.launch_sampling(20, lambda: self.func(self.model_wrap_cfg, x, levels))

    kind = type("Sampler", (), {"sample": sample})
    sampler = kind()
    sampler.func, sampler.model_wrap_cfg = func, torch.nn.Identity()
    sampler.config = SimpleNamespace(name="Odd", options={})
    model = SimpleNamespace(alphas_cumprod=torch.linspace(0.99, 0.01, 1000))
    return SimpleNamespace(sampler=sampler, sd_model=model, width=64, height=64, extra_generation_params={}, **fields)


def test_samplers_whose_levels_are_not_known_are_named() -> None:
    def adaptive(model: Any, x: Tensor, sigma_min: Any) -> None: ...

    def restart(model: Any, x: Tensor, sigmas: Tensor, s_noise: float = 1.0, restart_list: Any = None) -> None: ...

    def noisy(model: Any, x: Tensor, sigmas: Tensor, noise_sampler: Any = None) -> None: ...

    x = torch.zeros(1, 4, 8, 8)
    for function, sentence in (
        (adaptive, 'The sampler "Odd" chooses'),
        (restart, 'The sampler "Odd" goes back to higher noise'),
    ):
        sampling = editing_of(hosts.sampling_of(job(function), x, x))
        with pytest.raises(Unsupported, match=sentence):
            _ = sampling.sigmas
        with pytest.raises(Unsupported, match=sentence):
            sampling.start_from(x + 1)
    assert editing_of(hosts.sampling_of(job(restart), x, x)).is_stochastic
    sampling = editing_of(hosts.sampling_of(job(noisy), x, x))
    assert sampling.is_stochastic and sampling.needs_noise
    with pytest.raises(Unsupported, match="cannot run without its own noise"):
        sampling.without_noise()
    with pytest.raises(Unsupported, match="does not take its noise"):
        sampling.give_noise(lambda: x)
    assert len(sampling.sigmas) == 21


def test_a_host_that_does_not_let_the_noise_be_set_is_told() -> None:
    def ancestral(model: Any, x: Tensor, sigmas: Tensor, eta: float = 1.0, noise_sampler: Any = None) -> None: ...

    x = torch.zeros(1, 4, 8, 8)
    sampling = editing_of(hosts.sampling_of(job(ancestral), x, x))
    assert sampling.is_stochastic and not sampling.needs_noise
    with pytest.raises(Unsupported, match="samplers cannot be set"):
        sampling.without_noise()


@pytest.mark.parametrize("told", [{}, {"noise_sampler": None}])
def test_noise_is_given_to_samplers_that_draw_their_own_by_default(told: dict[str, Any]) -> None:
    """The WebUI names no source of noise to Euler a, and its function then has its own."""
    x, asked = torch.zeros(1, 4, 8, 8), []

    def sample_euler_ancestral(
        model: Any, x: Tensor, sigmas: Tensor, eta: float = 1.0, noise_sampler: Any = None
    ) -> None:
        asked.append((eta, noise_sampler(3.0, 2.0)))

    p = job(sample_euler_ancestral)
    p.sampler.initialize = lambda p: {"eta": 0.7, **told}
    own = p.sampler.initialize
    editing_of(hosts.sampling_of(p, x, x)).give_noise(lambda: x + 1)
    p.sampler.func(None, x, x, **p.sampler.initialize(p))
    ((eta, noise),) = asked
    assert eta == 0.7 and torch.equal(noise, x + 1)
    assert p.sampler.initialize is own


def test_a_host_that_shows_nothing_is_told_in_a_sentence() -> None:
    p = job(None, is_hr_pass=True)
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(Unsupported, match="starts from"):
        _ = editing_of(hosts.sampling_of(p, x)).sigmas  # no noise was passed
    with pytest.raises(Unsupported, match="does not report its first noise level"):
        _ = editing_of(hosts.sampling_of(p, x, x.clone())).sigmas  # this sampler has no sample_img2img
