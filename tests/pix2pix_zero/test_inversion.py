"""Inversion follows the probability-flow ODE, agrees with diffusers' DDIM; direct inversion reconstructs exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.pix2pix_zero.inversion import (
    InversionError,
    InversionSettings,
    Trajectory,
    euler_step,
    invert,
    psnr,
)
from tests.pix2pix_zero.toys import Crooked, Gaussian, latent_of, levels, replay, worst

PLAIN = InversionSettings("ddim", regularisation="off")
DIRECT = InversionSettings("direct")


def test_the_latents_follow_the_ode_and_the_error_halves_with_the_steps():
    x0, model = latent_of(), Gaussian()
    errors = []
    for steps in (100, 200, 400):
        found = invert(x0, levels(steps), model, PLAIN)
        exact = torch.stack([model.solution(x0, float(sigma)) for sigma in found.sigmas])
        errors.append(float(((found.latents - exact).square().mean() / exact.square().mean()).sqrt()))
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_the_model_is_asked_once_per_step_at_exactly_the_levels_that_decoding_asks_at():
    model, sigmas = Gaussian(), levels(7)
    found = invert(latent_of(), sigmas, model, PLAIN)
    upwards = model.asked
    model.asked = []
    replay(found, model)
    assert upwards == list(reversed(model.asked)) == list(reversed(sigmas[:-1].tolist()))


@pytest.mark.parametrize("ends_at_zero", [True, False])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_diffusers_ddim_inverse_scheduler_comes_to_the_same_noise_and_back(steps, ends_at_zero):
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    common: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": ends_at_zero,
        "steps_offset": 1,
    }
    upward, downward = DDIMInverseScheduler(**common), DDIMScheduler(**common)
    upward.set_timesteps(steps)
    downward.set_timesteps(steps)
    model = Crooked(torch.float64)
    last = 1.0 if ends_at_zero else float(downward.alphas_cumprod[0])
    alphas = torch.tensor([*downward.alphas_cumprod[downward.timesteps].tolist(), last], dtype=torch.float64)
    sigmas = ((1 - alphas) / alphas).sqrt()
    times = {float(sigma): float(time) / 1000 for sigma, time in zip(sigmas, downward.timesteps)}

    def predict(x: Tensor, sigma: float) -> Tensor:
        return x - sigma * model.noise(x / math.sqrt(1 + sigma**2), times[sigma])

    x0 = latent_of(dtype=torch.float64)
    sample = x0.clone()
    for time in upward.timesteps:
        sample = upward.step(model.noise(sample, float(time) / 1000), time, sample).prev_sample
    found = invert(x0 * math.sqrt(1 + float(sigmas[-1]) ** 2), sigmas, predict, PLAIN)
    assert worst(found.start / math.sqrt(1 + float(sigmas[0]) ** 2), sample) < 1e-5
    for time in downward.timesteps:
        sample = downward.step(model.noise(sample, float(time) / 1000), time, sample).prev_sample
    assert worst(replay(found, predict) / math.sqrt(1 + float(sigmas[-1]) ** 2), sample) < 1e-5


@pytest.mark.parametrize("regularisation", ["off", "paper", "as published"])
@pytest.mark.parametrize("refinements", [0, 3])
def test_direct_inversion_reconstructs_exactly_whatever_led_to_the_noise(regularisation, refinements):
    x0, model = latent_of(), Crooked()
    found = invert(x0, levels(12), model, InversionSettings("direct", refinements, regularisation))
    assert model.calls == 12 * (2 + refinements)
    assert worst(replay(found, model), x0) < 1e-6
    assert worst(replay(replace(found, offsets=None, done=12), model), x0) > 1e-2  # the offsets are what does it


def test_the_offsets_hold_the_latents_of_every_level_too():
    model, x0 = Crooked(), latent_of()
    found = invert(x0, levels(8), model, DIRECT)
    assert found.offsets is not None and torch.equal(found.latents[-1], x0)
    for index in range(8):
        sigma, target = float(found.sigmas[index]), float(found.sigmas[index + 1])
        decoded = euler_step(found.latents[index], model(found.latents[index], sigma), sigma, target)
        torch.testing.assert_close(decoded + found.offsets[index], found.latents[index + 1], rtol=0, atol=1e-5)


def test_every_refinement_brings_the_reconstruction_closer():
    x0, model = latent_of(), Crooked()
    errors = [
        worst(replay(invert(x0, levels(15), model, replace(PLAIN, refinements=count)), model), x0)
        for count in (0, 1, 3, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 100


def test_refining_a_model_for_which_that_diverges_goes_back_to_the_best_it_had():
    def steep(x: Tensor, sigma: float) -> Tensor:
        return x + sigma * x  # the noise -x, at which a step of 1.5 misses by 1.5 times more at every try

    x0, sigmas = latent_of(), torch.tensor([2.0, 0.5])

    def missed(refinements: int) -> Tensor:
        found = invert(x0, sigmas, steep, replace(PLAIN, refinements=refinements))
        return (replay(found, steep) - x0).square().mean((1, 2, 3)).sqrt()

    torch.testing.assert_close(missed(1), missed(0) * 1.5)  # what the last one leads to is not known before decoding
    for refinements in (2, 3, 15):
        assert torch.equal(missed(refinements), missed(0))


def test_regularisation_leaves_whiter_noise_in_the_start():
    """Correlated data: the noise found by DDIM carries its correlation, less of it when regularised."""
    smooth = torch.nn.functional.avg_pool2d(latent_of(1, 4, 36, 36), 5, stride=1) * 5
    model = Gaussian(1.0)

    def neighbours(x: Tensor) -> float:
        unit = x / x.std()
        return float((unit * unit.roll(1, -1)).mean())

    plain = neighbours(invert(smooth, levels(20), model, PLAIN).start)
    white = neighbours(invert(smooth, levels(20), model, replace(PLAIN, regularisation="paper")).start)
    assert 0.5 < plain and white < plain * 0.9


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 11), st.integers(0, 11), st.sampled_from(["ddim", "direct"]))
def test_stopped_twice_and_continued_gives_the_same_bits_as_in_one_go(first, second, method):
    x0, sigmas, choice = (
        latent_of(1, 4, 9, 11),
        levels(6),
        InversionSettings(method, 1),
    )
    whole = invert(x0, sigmas, Crooked(), choice)
    begun = invert(x0, sigmas, Crooked(), choice, progress=lambda done, total: done < first)
    assert begun.done == min(first, begun.total) and begun.complete == (first >= begun.total)
    before = begun.latents.clone()
    more = invert(x0, sigmas, Crooked(), choice, lambda done, total: done < first + second, begun)
    assert torch.equal(begun.latents, before)  # what was handed in is not written to
    model = Crooked()
    finished = invert(x0, sigmas, model, choice, partial=more)
    assert finished.complete and torch.equal(finished.latents, whole.latents)
    assert (finished.offsets is None and whole.offsets is None) or (
        finished.offsets is not None and whole.offsets is not None and torch.equal(finished.offsets, whole.offsets)
    )
    steps_up = max(0, 6 - more.done)
    assert model.calls == 2 * steps_up + (finished.total - more.done - steps_up)  # nothing is done twice


def test_a_partial_trajectory_of_something_else_is_refused():
    x0, sigmas = latent_of(), levels(5)
    begun = invert(x0, sigmas, Crooked(), PLAIN, lambda done, total: done < 2)
    with pytest.raises(ValueError, match="another image"):
        invert(x0 + 1, sigmas, Crooked(), PLAIN, partial=begun)
    with pytest.raises(ValueError, match="other settings"):
        invert(x0, sigmas, Crooked(), replace(PLAIN, seed=1), partial=begun)
    with pytest.raises(ValueError, match="other settings"):
        invert(x0, levels(6), Crooked(), PLAIN, partial=begun)


def test_a_picture_is_inverted_the_same_whatever_it_is_batched_with():
    x0 = latent_of(3, 4, 10, 12)
    together = invert(x0, levels(6), Crooked(), DIRECT)
    alone = invert(x0[1:2], levels(6), Crooked(), DIRECT)
    torch.testing.assert_close(alone.latents, together.latents[:, 1:2], rtol=1e-5, atol=1e-5)


def test_a_part_of_a_schedule_is_inverted_as_img2img_uses_it():
    x0, model = latent_of(), Crooked()
    found = invert(x0, levels(20)[-9:], model, DIRECT)
    assert found.steps == 8 and worst(replay(found, model), x0) < 1e-6


def test_repeated_levels_are_steps_that_change_nothing():
    sigmas = torch.tensor([5.0, 2.0, 2.0, 0.5, 0.0])
    found = invert(latent_of(), sigmas, Crooked(), PLAIN)
    assert torch.equal(found.latents[1], found.latents[2])


@pytest.mark.parametrize(
    "wrong",
    [[1.0, 2.0, 0.0], [1.0], [], [1.0, 0.0, 0.0], [math.inf, 1.0, 0.0], [math.nan, 0.0], [1.0, -1.0], [[1.0, 0.0]]],
)
def test_levels_that_no_sampler_has_are_refused(wrong):
    with pytest.raises(ValueError, match="sigmas"):
        invert(latent_of(), torch.tensor(wrong), Gaussian(), PLAIN)


@pytest.mark.parametrize("bad", [torch.zeros(4, 8, 8), torch.full((1, 4, 8, 8), math.nan), torch.zeros(0, 4, 8, 8)])
def test_latents_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="latent"):
        invert(bad, levels(3), Gaussian(), PLAIN)


@pytest.mark.parametrize("choice", [PLAIN, DIRECT])
def test_a_prediction_that_is_no_number_ends_it_with_a_sentence(choice):
    def broken(x: Tensor, sigma: float) -> Tensor:
        return x * math.nan if sigma > 3 else x

    with pytest.raises(InversionError, match="NaN"):
        invert(latent_of(), levels(6), broken, choice)


def test_an_exception_of_the_model_comes_through():
    def failing(x: Tensor, sigma: float) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        invert(latent_of(), levels(3), failing, PLAIN)


def test_what_was_made_in_inference_mode_serves_gradients_afterwards():
    """Some hosts sample in inference mode, and guidance differentiates at the trajectory's latents."""
    with torch.inference_mode():
        found = invert(latent_of(), levels(4), Crooked(), DIRECT)
        found = found.to("cpu")
    assert not found.latents.is_inference() and not found.latents[2].is_inference()
    variable = latent_of().requires_grad_(True)
    (variable * found.latents[2]).sum().backward()
    assert torch.equal(variable.grad, found.latents[2])  # type: ignore[arg-type]


def test_a_half_precision_picture_and_model_are_followed_in_single():
    def half(x: Tensor, sigma: float) -> Tensor:
        return Gaussian()(x, sigma).half()

    found = invert(latent_of().half(), levels(6), half, DIRECT)
    assert found.latents.dtype == torch.float32
    assert worst(replay(found, half), latent_of().half().float()) < 1e-2


def test_a_model_with_gradients_leaves_no_graph_behind():
    weight = torch.ones(1, requires_grad=True)
    found = invert(latent_of(), levels(3), lambda x, sigma: Gaussian()(x, sigma) * weight, DIRECT)
    assert not found.latents.requires_grad


def test_the_size_counts_all_bytes():
    found = invert(latent_of(1, 4, 8, 8), levels(3), Gaussian(), DIRECT)
    assert found.size == (4 + 4 * 256 + 3 * 256) * 4
    assert isinstance(found, Trajectory) and found.start.shape == (1, 4, 8, 8)


def test_psnr_is_that_of_the_textbook():
    flat = torch.full((2, 3, 8, 8), 0.5)
    other = flat.clone()
    other[0] += 0.1
    found = psnr(other, flat)
    assert found[0] == pytest.approx(20, abs=1e-4) and math.isinf(found[1])
    assert psnr(other * 255, flat * 255, 255.0)[0] == pytest.approx(20, abs=1e-4)
    with pytest.raises(ValueError, match="same shape"):
        psnr(flat, flat[:1])
