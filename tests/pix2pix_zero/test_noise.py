"""The closed-form gradients are those of autograd, and the regularisation makes correlated noise whiter."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.pix2pix_zero.noise import (
    autocorrelation,
    draw_rolls,
    kl_divergence,
    pyramid_sizes,
    regularise,
)

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 40), st.integers(2, 40))


def noise_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(*shape: int, seed: int = 0) -> Tensor:
    """Noise of unit variance whose neighbours are much alike."""
    blurred = F.avg_pool2d(F.pad(noise_of(*shape, seed=seed), (2, 2, 2, 2), mode="circular"), 5, stride=1)
    return blurred / blurred.std((1, 2, 3), keepdim=True)


def plain_autocorrelation(noise: Tensor, rolls: list[tuple[int, int]], keep_variance: bool) -> Tensor:
    """The definition, one channel at a time and with indices instead of rolls."""
    total = noise.new_zeros(())
    for channel in noise:
        level = channel
        for number, shifts in enumerate(rolls):
            if number:
                level = F.avg_pool2d(level[None, None], 2)[0, 0] * (2 if keep_variance else 1)
            for axis, shift in enumerate(shifts):
                side = level.shape[axis]
                if side > 1:
                    there = torch.tensor([(place - shift) % side for place in range(side)])
                    total = total + (level * level.index_select(axis, there)).mean() ** 2
    return total


def whiteness(noise: Tensor) -> float:
    """Mean of the squared auto-correlation over all rolls of the two finest levels."""
    found = []
    for level in (noise, F.avg_pool2d(noise, 2) * 2):
        for shift in range(1, level.shape[-1] // 2):
            for axis in (-2, -1):
                found.append((level * level.roll(shift, axis)).mean((-2, -1)).square().mean())
    return float(torch.stack(found).mean())


@given(SHAPES, st.booleans(), st.integers(0, 1000))
def test_autocorrelation_has_the_loss_and_the_gradient_that_autograd_finds(shape, keep_variance, seed):
    rolls = draw_rolls(shape[2], shape[3], gen(seed))
    noise = noise_of(*shape, seed=seed, dtype=torch.float64)
    loss, gradient = autocorrelation(noise, rolls, keep_variance)
    for row in range(shape[0]):
        variable = noise[row].clone().requires_grad_(True)
        expected = plain_autocorrelation(variable, rolls, keep_variance)
        expected.backward()
        assert variable.grad is not None
        torch.testing.assert_close(loss[row], expected.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient[row], variable.grad, rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.floats(0.05, 5), st.floats(-2, 2))
def test_kl_has_the_loss_and_the_gradient_that_autograd_finds(shape, spread, offset):
    noise = (noise_of(*shape, dtype=torch.float64) * spread + offset).requires_grad_(True)
    expected = torch.stack([row.var() + row.mean() ** 2 - 1 - torch.log(row.var() + 1e-7) for row in noise])
    expected.sum().backward()
    loss, gradient = kl_divergence(noise.detach())
    assert noise.grad is not None
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, noise.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("keep_variance", [True, False])
def test_single_precision_agrees_with_autograd_to_a_millionth(keep_variance):
    rolls = draw_rolls(64, 48, gen(3))
    noise = noise_of(2, 4, 64, 48).requires_grad_(True)
    expected = torch.stack([plain_autocorrelation(row, rolls, keep_variance) for row in noise])
    expected.sum().backward()
    loss, gradient = autocorrelation(noise.detach(), rolls, keep_variance)
    assert noise.grad is not None
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, noise.grad, rtol=0, atol=1e-6)


def test_the_pyramid_of_a_latent_of_512_pixels_is_the_papers():
    assert pyramid_sizes(64, 64) == [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert pyramid_sizes(96, 64)[-1] == (12, 8)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**31))
def test_a_roll_of_nothing_is_never_drawn(height, width, seed):
    for sides, shifts in zip(pyramid_sizes(height, width), draw_rolls(height, width, gen(seed))):
        for side, shift in zip(sides, shifts):
            assert shift == 0 if side == 1 else 1 <= shift <= max(1, (side - 1) // 2)


def test_the_rolls_of_a_small_latent_are_all_drawn_at_some_time():
    drawn = {rolls for seed in range(200) for rolls in draw_rolls(8, 8, gen(seed))}
    assert drawn == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}


def test_white_noise_keeps_its_variance_through_the_pyramid():
    """With the variance kept, the coarsest level counts as much as the finest; in the published code hardly."""
    noise = noise_of(4, 4, 64, 64)
    only_coarse = [(0, 0), (0, 0), (0, 0), (2, 3)]
    kept, _ = autocorrelation(noise, only_coarse, True)
    lost, _ = autocorrelation(noise, only_coarse, False)
    torch.testing.assert_close(kept / lost, torch.full((4,), float(2 ** (3 * 4))), rtol=1e-3, atol=0)


@pytest.mark.parametrize("keep_variance", [True, False])
def test_white_noise_stays_nearly_as_it_is_and_correlated_noise_gets_whiter(keep_variance):
    white = noise_of(2, 4, 64, 64)
    change = (regularise(white, gen(), keep_variance) - white).std()
    assert change < (0.12 if keep_variance else 0.03)
    rough = correlated(2, 4, 64, 64)
    better = regularise(rough, gen(), keep_variance)
    assert whiteness(better) < whiteness(rough) * (0.5 if keep_variance else 0.95)
    assert torch.nn.functional.cosine_similarity(better.flatten(), rough.flatten(), 0) > 0.5  # still the same image


@pytest.mark.parametrize("keep_variance", [True, False])
@pytest.mark.parametrize("offset", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0])
def test_no_noise_is_so_odd_that_the_steps_run_away(keep_variance, offset, spread):
    odd = correlated(1, 4, 24, 40) * spread + offset
    result = regularise(odd, gen(), keep_variance)
    assert torch.isfinite(result).all()
    assert result.square().mean().sqrt() <= 1.1 * max(1.0, float(odd.square().mean().sqrt()))


def test_a_constant_or_zero_noise_gives_numbers():
    for value in (0.0, 1.0):
        assert torch.isfinite(regularise(torch.full((1, 4, 16, 16), value), gen())).all()


def test_a_picture_comes_out_the_same_whatever_it_is_batched_with():
    noise = noise_of(3, 4, 20, 13)
    together = regularise(noise, gen(5))
    for row in range(3):
        torch.testing.assert_close(regularise(noise[row : row + 1], gen(5))[0], together[row], rtol=0, atol=1e-6)


def test_half_precision_is_computed_in_single_and_returned_as_half():
    noise = noise_of(1, 4, 16, 16).half()
    result = regularise(noise, gen())
    assert result.dtype == torch.float16
    assert torch.equal(result, regularise(noise.float(), gen()).half())


def test_the_published_algorithm_with_autograd_gives_the_same_noise():
    """Five rounds of five steps at weight 20 / 5 and one KL step at weight 20, by autograd, with the same rolls."""
    noise = correlated(1, 4, 32, 32).double()
    generator = gen(9)
    value = noise[0]
    for _ in range(5):
        for _ in range(5):
            variable = value.detach().requires_grad_(True)
            plain_autocorrelation(variable, draw_rolls(32, 32, generator), False).backward()
            assert variable.grad is not None
            value = variable.detach() - 20 * variable.grad / 5
        variable = value.detach().requires_grad_(True)
        (variable.var() + variable.mean() ** 2 - 1 - torch.log(variable.var() + 1e-7)).backward()
        assert variable.grad is not None
        value = variable.detach() - 20 * variable.grad
    torch.testing.assert_close(regularise(noise, gen(9), keep_variance=False)[0], value, rtol=0, atol=1e-9)


def test_the_global_generators_are_left_alone():
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    regularise(noise_of(1, 4, 16, 16), gen())
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        regularise(torch.zeros(4, 8, 8), gen())
