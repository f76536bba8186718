"""The noises found for an ancestral sampler make it generate the image again, by our loop and by diffusers' sampler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.checks import SettingsError
from lib_methods.pix2pix_zero.inversion import (
    AncestralSettings,
    InversionError,
    Trajectory,
    invert_ancestral,
    noise_of,
)
from lib_methods.pix2pix_zero.noise import ancestral_levels
from tests.pix2pix_zero.toys import Crooked, Gaussian, latent_of, levels, replay, worst


def offsets(path: Trajectory) -> Tensor:
    assert path.offsets is not None
    return path.offsets


@given(st.floats(0.01, 200), st.floats(0, 1), st.floats(0, 1))
def test_the_two_levels_of_a_step_add_up_to_its_target(sigma, share, eta):
    target = sigma * share
    down, up = ancestral_levels(sigma, target, eta)
    assert 0 <= down <= target * (1 + 1e-9) and 0 <= up <= target
    assert math.hypot(down, up) == pytest.approx(target, rel=1e-6, abs=1e-12)
    if eta == 0:
        assert up == 0


@pytest.mark.parametrize("eta", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_the_picture_is_drawn_again_exactly(eta, steps):
    x0, model = latent_of(), Crooked()
    path = invert_ancestral(x0, levels(steps), model, AncestralSettings(eta))
    assert model.calls == steps and path.complete
    assert worst(replay(path, model), x0) < 1e-5


def test_the_samplers_own_loop_draws_the_picture_from_the_noises():
    """k-diffusion's Euler a written out; only its last step, which adds no noise, needs the correction."""
    x0, model, sigmas = latent_of(), Crooked(), levels(9)
    path = invert_ancestral(x0, sigmas, model, AncestralSettings(eta=0.8, noise_scale=1.1))
    x, noises = path.start, noise_of(path)
    for index in range(9):
        now, then = float(sigmas[index]), float(sigmas[index + 1])
        up = min(then, 0.8 * (then**2 * (now**2 - then**2) / now**2) ** 0.5)
        down = (then**2 - up**2) ** 0.5
        x = x + (x - model(x, now)) / now * (down - now)
        if then > 0:
            x = x + noises.next() * 1.1 * up
    assert worst(x + offsets(path)[-1], x0) < 1e-4
    assert not noises.adds(8)


def test_diffusers_euler_ancestral_sampler_draws_the_picture_from_the_noises(monkeypatch: pytest.MonkeyPatch):
    from diffusers import EulerAncestralDiscreteScheduler
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as theirs

    scheduler = EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(12)
    x0, model = latent_of(), Crooked()
    path = invert_ancestral(x0, scheduler.sigmas, model)
    noises = noise_of(path)
    monkeypatch.setattr(theirs, "randn_tensor", lambda *args, **kwargs: noises.next())
    x = path.start
    for index, time in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, time)  # diffusers wants to be asked
        sigma = float(scheduler.sigmas[index])
        x = scheduler.step((x - model(x, sigma)) / sigma, time, x).prev_sample
    assert worst(x + offsets(path)[-1], x0) < 1e-4


def test_the_noisy_latents_are_those_of_the_levels_and_independent_of_each_other():
    x0 = latent_of(1, 4, 48, 48)
    path = invert_ancestral(x0, levels(6), Gaussian())
    assert torch.equal(path.latents[-1], x0)
    unit = torch.stack([(path.latents[i] - x0) / path.sigmas[i] for i in range(6)]).flatten(1)
    correlations = unit @ unit.T / unit.shape[1]
    torch.testing.assert_close(correlations, torch.eye(6), rtol=0, atol=0.06)


def test_for_data_that_the_model_knows_the_noises_are_stronger_than_the_samplers_own():
    """As published: independent noisy latents need noises of more than unit variance, which is what makes the
    image's structure stay when the text is changed."""
    model = Gaussian(1.0)
    path = noise_of(invert_ancestral(latent_of(1, 4, 32, 32), levels(20, 0.3, 14.6), model))
    noises = [path.next() for _ in range(20)]
    assert float(torch.stack(noises[5:-1]).std()) > 1.05


def test_stopped_and_continued_gives_the_same_bits():
    x0, sigmas = latent_of(), levels(6)
    whole = invert_ancestral(x0, sigmas, Crooked())
    begun = invert_ancestral(x0, sigmas, Crooked(), progress=lambda done, total: done < 2)
    assert begun.done == 2 and not begun.complete
    model = Crooked()
    finished = invert_ancestral(x0, sigmas, model, partial=begun)
    assert model.calls == 4 and torch.equal(offsets(finished), offsets(whole))
    for other in (
        lambda: invert_ancestral(x0 + 1, sigmas, model, partial=begun),
        lambda: invert_ancestral(x0, levels(5), model, partial=begun),
        lambda: invert_ancestral(x0, sigmas, model, AncestralSettings(seed=5), partial=begun),
    ):
        with pytest.raises(ValueError, match="another image|other settings"):
            other()


def test_the_batch_does_not_matter_but_the_seed_does():
    x0 = latent_of(3, 4, 8, 8)
    together = invert_ancestral(x0, levels(4), Gaussian())
    alone = invert_ancestral(x0[2:], levels(4), Gaussian())
    torch.testing.assert_close(offsets(alone), offsets(together)[:, 2:])
    other = invert_ancestral(x0, levels(4), Gaussian(), AncestralSettings(seed=1))
    assert worst(other.start, together.start) > 1


def test_a_sampler_that_stops_above_zero_is_followed_too():
    x0, sigmas, model = latent_of(), levels(6)[:-1], Crooked()
    path = invert_ancestral(x0, sigmas, model)
    assert worst(replay(path, model), x0) < 1e-5
    noisy = invert_ancestral(latent_of(1, 4, 48, 48), torch.tensor([3.0, 2.0, 1.0]), model).latents
    spread = (noisy - noisy[-1]).flatten(1).std(1)  # the latent's own noise, of the level 1, is in it already
    torch.testing.assert_close(spread, torch.tensor([8.0, 3.0, 0.0]).sqrt(), rtol=0.05, atol=0)


def test_a_broken_prediction_ends_it_with_a_sentence():
    with pytest.raises(InversionError, match="NaN"):
        invert_ancestral(latent_of(), levels(3), lambda x, sigma: x * math.nan)


def test_what_was_made_in_inference_mode_serves_gradients_afterwards():
    with torch.inference_mode():
        path = invert_ancestral(latent_of(), levels(3), Crooked()).to("cpu")
    assert not path.latents.is_inference() and not offsets(path)[0].is_inference()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="latent"):
        invert_ancestral(torch.zeros(4, 8, 8), levels(3), Gaussian())
    with pytest.raises(ValueError, match="sigmas"):
        invert_ancestral(latent_of(), torch.tensor([0.0, 1.0]), Gaussian())
    for wrong in ({"eta": 1.5}, {"noise_scale": 0.0}, {"seed": -1}):
        with pytest.raises(SettingsError, match="must be"):
            AncestralSettings(**wrong)


def test_the_size_counts_all_bytes():
    path = invert_ancestral(Tensor(latent_of(1, 4, 8, 8)), levels(3), Gaussian())
    assert path.size == (4 + 4 * 256 + 3 * 256) * 4
