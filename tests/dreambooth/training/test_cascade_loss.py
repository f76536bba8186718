"""The arithmetic of training a cascade's stage: prediction, variance, prior, and the small image with its noise."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lib_methods.cascade.augmentation import augmented, enlarged, kept_signal, level_label, low_resolution
from lib_methods.cascade.folder import read_cascade
from lib_methods.cascade.variance import variance_bound
from lib_methods.dreambooth.model.model import TextEmbedding
from lib_methods.dreambooth.model.stage import StageModel
from lib_methods.dreambooth.training.loss import noised, training_loss
from tests.cascade import models

LEVEL_BEFORE, LEVEL = 1e-3, 1e-5  # of the noise on the small image: as published, and as tuned


def alphas() -> Tensor:
    """IF's schedule."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _log_normal(x: float, mean: float, log_variance: float) -> float:
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean) ** 2 / math.exp(log_variance))


@pytest.mark.parametrize("kind", ["learned_range", "learned"])
@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_the_loss_is_that_of_a_plain_slow_reference(parameterization: str, kind: str) -> None:
    """Number by number: the square error by row, plus the divergence between the true step back and the model's, as
    DDPM's equations 6 and 7 (Ho et al. 2020) and equation 15 of Nichol and Dhariwal have them."""
    kept, times = alphas().double(), torch.tensor([1, 250, 700])
    clean, noise = images(3, 3, 2, 2).double(), torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    out, is_prior = images(3, 6, 2, 2, seed=3), torch.tensor([False, True, False])
    rows = []
    for row, time in enumerate(times.tolist()):
        now, before = float(kept[time]), float(kept[time - 1])
        alpha = now / before
        beta = 1 - alpha
        least, most = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
        error = bound = 0.0
        for place in range(12):
            c, e = float(clean[row].flatten()[place]), float(noise[row].flatten()[place])
            predicted, raw = float(out[row, :3].flatten()[place]), float(out[row, 3:].flatten()[place])
            seen = math.sqrt(now) * c + math.sqrt(1 - now) * e
            if parameterization == "eps":
                target, guess = e, (seen - math.sqrt(1 - now) * predicted) / math.sqrt(now)
            else:
                target = math.sqrt(now) * e - math.sqrt(1 - now) * c
                guess = math.sqrt(now) * seen - math.sqrt(1 - now) * predicted
            error += (predicted - target) ** 2 / 12
            true, mine = (
                (math.sqrt(before) * beta * x0 + math.sqrt(alpha) * (1 - before) * seen) / (1 - now)
                for x0 in (c, guess)
            )
            logs = raw if kind == "learned" else (raw + 1) / 2 * most + (1 - (raw + 1) / 2) * least
            # the divergence of two normal distributions
            bound += 0.5 * (logs - least - 1 + math.exp(least - logs) + (true - mine) ** 2 * math.exp(-logs)) / 12
        rows.append(error + bound)
    wanted = (rows[0] + rows[2]) / 2 + 0.5 * rows[1]
    arguments = (noise, clean.float(), times, kept.float(), parameterization)
    loss, _ = training_loss(out, *arguments, is_prior=is_prior, prior_weight=0.5, variance=kind)
    assert loss.item() == pytest.approx(wanted, rel=1e-3)
    plain, _ = training_loss(out, *arguments, is_prior=is_prior, prior_weight=0.5)
    short, _ = training_loss(out[:, :3], *arguments, is_prior=is_prior, prior_weight=0.5)
    assert plain.item() == short.item() < loss.item()  # without a kind the variance is left alone


def test_the_bound_teaches_the_variance_and_not_the_mean() -> None:
    out, times = images(2, 6, 4, 4).requires_grad_(), torch.tensor([0, 999])
    bound = variance_bound(out[:, 3:], out[:, :3] - 1, times, alphas(), "eps")
    bound.sum().backward()
    assert bound.isfinite().all() and bound.min() >= 0
    assert out.grad is not None and out.grad[:, 3:].abs().sum() > 0 and not out.grad[:, :3].any()


def test_the_condition_holds_nothing_finer_than_the_small_image() -> None:
    checks = (torch.arange(32).view(-1, 1) + torch.arange(32)) % 2 * 2.0 - 1
    assert low_resolution(checks.expand(1, 3, 32, 32), 8).abs()[..., 1:-1, 1:-1].max() < 0.15


def test_the_level_is_a_time_of_the_schedule_down_to_no_noise() -> None:
    schedule = alphas()
    assert kept_signal(0.0, schedule) == 1.0
    for step in (0, 1, 499, 999):
        assert kept_signal((step + 1) / 1000, schedule) == pytest.approx(float(schedule[step]), rel=1e-5)
    assert kept_signal(0.0105, schedule) == pytest.approx(float(schedule[9:11].mean()), rel=1e-6)
    before, now = (1 - kept_signal(level, schedule) for level in (LEVEL_BEFORE, LEVEL))
    assert now == pytest.approx(before / 100, rel=1e-3)
    levels = [kept_signal(number / 200, schedule) for number in range(201)]
    assert levels == sorted(levels, reverse=True)
    assert [level_label(level, 1000) for level in (0.0, 1e-5, 1e-3, 1.0)] == pytest.approx([0, 0, 0, 999])
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            kept_signal(wrong, schedule)


def test_augmentation_keeps_the_variance() -> None:
    noise, picture = (torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    assert augmented(picture, noise, 0.5, alphas()).std() == pytest.approx(1.0, abs=0.02)
    assert 1e-4 < (augmented(picture, noise, LEVEL, alphas()) - picture).std() < 2e-3


def test_small_images_keep_their_shape_and_brightness() -> None:
    wide = torch.full((1, 3, 32, 48), 0.3)
    small = low_resolution(wide, 8)
    assert small.shape == (1, 3, 8, 12)
    torch.testing.assert_close(enlarged(small, (32, 48)), wide)
    for side in (0, 33):
        with pytest.raises(ValueError, match="no low resolution"):
            low_resolution(wide, side)


def test_a_few_steps_teach_the_upscaler_to_look_at_the_small_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """After a short training on images of one colour each, the wrong small image makes the prediction worse."""
    folder = tmp_path_factory.mktemp("stage")
    models.second_stage(folder / "IF-II")
    model = StageModel(read_cascade([folder]).stages[0], torch.device("cpu"), torch.float32, texts=folder, small=16)
    batch = images(8, 3, 1, 1, seed=8).expand(8, 3, 32, 32)
    text, nobody = TextEmbedding(torch.zeros(8, 3, models.WIDTH)), torch.zeros(8, dtype=torch.bool)
    generator = torch.Generator().manual_seed(9)
    optimizer = torch.optim.Adam(model.unet.requires_grad_(True).parameters(), lr=5e-3)

    def out(shown: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        noisy = noised(batch, noise, times, model.alphas_cumprod)
        return model.predict(torch.cat([noisy, model.condition(shown, torch.zeros_like(batch))], 1), times, text)

    for _ in range(40):
        noise = torch.randn(batch.shape, generator=generator)
        times = torch.randint(1000, (8,), generator=generator)
        arguments = (noise, batch, times, model.alphas_cumprod, "eps")
        loss, _parts = training_loss(out(batch, noise, times), *arguments, is_prior=nobody, variance=model.variance)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    noise, times = torch.randn(batch.shape, generator=generator), torch.full((8,), 900)
    with torch.no_grad():
        errors = [(out(shown, noise, times)[:, :3] - noise).square().mean() for shown in (batch, batch.roll(1, 0))]
    assert errors[0] < errors[1]
