"""The super-resolution stage is trained on what it will be shown: photos, their small copies, and the right labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lib_methods.cascade.augmentation import augmented, enlarged, kept_signal, level_label, low_resolution
from lib_methods.dreambooth.training.loss import (
    LEVEL,
    LEVEL_BEFORE,
    Draw,
    Upscaler,
    predicted_noise,
)
from lib_methods.errors import UserError

SIDE, FULL, TEXT = 8, 16, 16


def alphas() -> Tensor:
    """IF's schedule."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod


def stage_two(**changes: Any) -> UNet2DConditionModel:
    """IF's stage II in tiny: its blocks, its text projection, its noise level, its learned variance."""
    config = {
        "sample_size": FULL,
        "in_channels": 6,
        "out_channels": 6,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "encoder_hid_dim": TEXT,
        "resnet_time_scale_shift": "scale_shift",
        "timestep_post_act": "gelu",
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "class_embed_type": "timestep",
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**{**config, **changes})


class Listener(nn.Module):
    """A UNet that answers with what it is told to and keeps what it is shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=6, out_channels=answer.shape[1], class_embed_type="timestep")
        self.answer = nn.Parameter(answer)
        self.shown: dict[str, Tensor] = {}

    def forward(
        self, sample: Tensor, timesteps: Tensor, *, encoder_hidden_states: Tensor, class_labels: Tensor, **_: Any
    ) -> tuple[Tensor]:
        self.shown = {"sample": sample, "timesteps": timesteps, "labels": class_labels, "text": encoder_hidden_states}
        return (self.answer,)


def pictures(count: int = 2, side: int = FULL) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def draw(like: Tensor, seed: int = 2) -> Draw:
    return Draw.like(like, 1000, torch.Generator().manual_seed(seed))


def heard(level: float = LEVEL, seed: int = 2) -> tuple[Listener, Tensor, Draw]:
    """What a UNet is shown in a step, the pictures, and what was drawn."""
    batch = pictures()
    unet, drawn = Listener(torch.zeros(2, 6, FULL, FULL)), draw(batch, seed)
    text = torch.zeros(2, 3, TEXT)
    Upscaler(unet, alphas(), level=level).loss(batch, text, drawn, is_prior=torch.tensor([False, True]), side=SIDE)
    return unet, batch, drawn


def test_the_condition_is_the_small_picture_and_not_the_noisy_target_again() -> None:
    unet, batch, drawn = heard()
    noisy, condition = unet.shown["sample"].chunk(2, dim=1)
    kept = alphas()[drawn.timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy, kept.sqrt() * batch + (1 - kept).sqrt() * drawn.noise)
    small = torch.nn.functional.interpolate(batch, (SIDE, SIDE), mode="bilinear", antialias=True)
    assert (condition - enlarged(small, (FULL, FULL))).abs().max() < 0.005
    assert (condition - noisy).abs().mean() > 0.1


def test_the_condition_holds_nothing_that_the_target_would_tell() -> None:
    """Other noise and other timesteps of the target leave it as it is; so does detail finer than the small picture."""
    one, two = (heard(level=0.0, seed=seed)[0].shown["sample"] for seed in (2, 3))
    assert not torch.equal(one[:, :3], two[:, :3])
    assert torch.equal(one[:, 3:], two[:, 3:])
    checks = (torch.arange(32).view(-1, 1) + torch.arange(32)) % 2 * 2.0 - 1
    assert low_resolution(checks.expand(1, 3, 32, 32), 8).abs()[..., 1:-1, 1:-1].max() < 0.15


def test_the_class_label_is_the_level_of_the_condition_and_not_the_timestep() -> None:
    for level, label in ((LEVEL, 0.0), (LEVEL_BEFORE, 0.0), (0.25, 249.0)):
        unet, _, drawn = heard(level)
        assert unet.shown["labels"].tolist() == pytest.approx([label] * 2)
        assert torch.equal(unet.shown["timesteps"], drawn.timesteps)
        assert drawn.timesteps.tolist() != [label] * 2


def test_the_real_unet_hears_level_text_and_small_picture() -> None:
    unet, batch = stage_two().eval(), pictures()
    drawn, text = draw(batch), torch.randn(2, 3, TEXT, generator=torch.Generator().manual_seed(4))

    def out(level: float = LEVEL, turned: bool = False, words: Tensor = text) -> Tensor:
        stage = Upscaler(unet, alphas(), level=level)
        low = low_resolution(batch.flip(0) if turned else batch, SIDE)
        condition = stage.condition(low, (FULL, FULL), torch.zeros_like(batch))
        with torch.no_grad():
            return stage.predict(batch, drawn.timesteps, condition, words)

    assert out().shape == batch.shape
    for other in (out(level=0.9), out(turned=True), out(words=-text)):
        assert (other - out()).abs().max() > 1e-4


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


def test_augmentation_keeps_the_variance_and_has_noise_of_its_own() -> None:
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    assert augmented(picture, noise, 0.5, alphas()).std() == pytest.approx(1.0, abs=0.02)
    spread = (augmented(picture, noise, LEVEL, alphas()) - picture).std()
    assert 1e-4 < spread < 2e-3
    drawn = draw(torch.zeros(4, 3, 64, 64))
    assert abs(float((drawn.noise * drawn.augmentation).mean())) < 0.02


def test_only_the_mean_half_of_a_learned_variance_is_trained() -> None:
    batch = pictures()
    drawn, nothing = draw(batch), torch.tensor([False, False])
    unet = stage_two()
    stage = Upscaler(unet, alphas())
    stage.loss(batch, torch.zeros(2, 3, TEXT), drawn, is_prior=nothing, side=SIDE)[0].backward()
    assert unet.conv_out.weight.grad is not None
    assert unet.conv_out.weight.grad[:3].abs().max() > 0
    assert not unet.conv_out.weight.grad[3:].any()
    exact = torch.cat([drawn.noise, torch.full_like(batch, 7.0)], dim=1)
    loss, _ = Upscaler(Listener(exact), alphas()).loss(
        batch, torch.zeros(2, 3, TEXT), drawn, is_prior=nothing, side=SIDE
    )
    assert loss.item() == 0.0
    assert predicted_noise(batch, 3) is not None
    with pytest.raises(ValueError, match="4 channels"):
        predicted_noise(torch.zeros(1, 4, 2, 2), 3)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("variance", [False, True])
def test_the_prior_is_split_by_rows_and_weighted(count: int, variance: bool) -> None:
    batch = pictures(2 * count)
    drawn = draw(batch)
    answer = torch.randn(2 * count, 6 if variance else 3, FULL, FULL, generator=torch.Generator().manual_seed(7))
    unet = Listener(answer)
    is_prior = torch.arange(2 * count) >= count
    text = torch.zeros(2 * count, 3, TEXT)
    loss, parts = Upscaler(unet, alphas()).loss(batch, text, drawn, is_prior=is_prior, side=SIDE, prior_weight=0.5)
    error = (answer[:, :3] - drawn.noise).square()
    assert parts.subject is not None and parts.prior is not None
    torch.testing.assert_close(parts.subject, error[:count].mean())
    torch.testing.assert_close(parts.prior, error[count:].mean())
    torch.testing.assert_close(loss.detach(), error[:count].mean() + 0.5 * error[count:].mean())


def test_small_pictures_keep_their_shape_and_brightness() -> None:
    wide = torch.full((1, 3, 32, 48), 0.3)
    small = low_resolution(wide, 8)
    assert small.shape == (1, 3, 8, 12)
    torch.testing.assert_close(enlarged(small, (32, 48)), wide)
    for side in (0, 33):
        with pytest.raises(ValueError, match="no low resolution"):
            low_resolution(wide, side)


def test_a_unet_of_another_kind_is_told_apart() -> None:
    first_stage = stage_two(in_channels=3)
    with pytest.raises(UserError, match="has 3 input"):
        Upscaler(first_stage, alphas())
    with pytest.raises(UserError, match="takes no noise level"):
        Upscaler(stage_two(class_embed_type=None), alphas())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Upscaler(stage_two(), alphas(), level=2.0)


def test_a_few_steps_teach_it_to_look_at_the_small_picture() -> None:
    """After a short training on pictures of one colour each, the wrong small picture makes the prediction worse."""
    colours = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(8)) * 2 - 1
    batch = colours.expand(8, 3, FULL, FULL)
    unet = stage_two()
    stage = Upscaler(unet, alphas())
    text, nothing = torch.zeros(8, 3, TEXT), torch.zeros(8, dtype=torch.bool)
    generator = torch.Generator().manual_seed(9)
    optimizer = torch.optim.Adam(unet.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss, _parts = stage.loss(
            batch, text, Draw.like(batch, 1000, generator), is_prior=nothing, side=SIDE, snr_gamma=5.0
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    drawn = Draw(torch.full((8,), 900), *torch.randn(2, 8, 3, FULL, FULL, generator=generator))
    kept = alphas()[900]
    noisy = kept.sqrt() * batch + (1 - kept).sqrt() * drawn.noise
    with torch.no_grad():
        errors = []
        for shown in (batch, batch.roll(1, 0)):
            condition = stage.condition(low_resolution(shown, SIDE), (FULL, FULL), drawn.augmentation)
            errors.append((stage.predict(noisy, drawn.timesteps, condition, text) - drawn.noise).square().mean())
    assert errors[0] < errors[1]
