"""The loss is the paper's at any batch size, together with min-SNR, both parameterizations, masks and zero SNR."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods.checkpoints.schedule import NoiseSchedule
from lib_methods.dreambooth.training.loss import (
    min_snr_weights,
    noised,
    targets,
    training_loss,
)

GAMMA = 5.0


def schedule() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def batch(rows: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(rows, 4, 3, 5, generator=generator)  # noqa: E731
    return {
        "model_out": draw().requires_grad_(True),
        "noise": draw(),
        "latents": draw(),
        "timesteps": torch.randint(0, 1000, (rows,), generator=generator),
    }


def by_hand(given: dict[str, Any], kind: str, is_prior: list[bool], weight: float, gamma: float) -> Tensor:
    """The loss written out, row by row, in fp64."""
    alphas = schedule().double()
    sums = {False: torch.zeros((), dtype=torch.float64), True: torch.zeros((), dtype=torch.float64)}
    for row, prior in enumerate(is_prior):
        a = alphas[given["timesteps"][row]]
        noise, latent = given["noise"][row].double(), given["latents"][row].double()
        target = noise if kind == "eps" else a.sqrt() * noise - (1 - a).sqrt() * latent
        error = ((given["model_out"][row].double() - target) ** 2).mean()
        snr = a / (1 - a)
        if gamma:
            error = error * torch.minimum(snr, torch.tensor(gamma)) / (snr if kind == "eps" else snr + 1)
        sums[prior] = sums[prior] + error / is_prior.count(prior)
    return sums[False] + weight * sums[True]


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("gamma", [0.0, GAMMA])
@pytest.mark.parametrize("is_prior", [[False, True], [True, False] * 4, [False] * 4 + [True] * 4, [False, True, True]])
def test_loss_and_gradients_are_those_of_the_loss_written_out(kind: str, gamma: float, is_prior: list[bool]) -> None:
    given = batch(len(is_prior))
    wanted = by_hand(given, kind, is_prior, 0.7, gamma)
    (gradient,) = torch.autograd.grad(wanted, given["model_out"])
    loss, parts = training_loss(
        **given,
        alphas_cumprod=schedule(),
        parameterization=kind,
        is_prior=torch.tensor(is_prior),
        prior_weight=0.7,
        snr_gamma=gamma,
    )
    (found,) = torch.autograd.grad(loss, given["model_out"])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)
    assert parts.subject is not None and parts.prior is not None
    assert parts.subject.item() + 0.7 * parts.prior.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_priors_weight_scales_the_priors_gradients_and_no_others(rows: int) -> None:
    is_prior = torch.tensor([False] * rows + [True] * rows)
    found = {}
    for weight in (0.0, 1.0, 3.0):
        given = batch(2 * rows)
        loss, _ = training_loss(
            **given, alphas_cumprod=schedule(), parameterization="eps", is_prior=is_prior, prior_weight=weight
        )
        (found[weight],) = torch.autograd.grad(loss, given["model_out"])
    assert found[0.0][rows:].abs().max() == 0 and found[1.0][rows:].abs().min() > 0
    torch.testing.assert_close(found[3.0][rows:], 3 * found[1.0][rows:])
    assert torch.equal(found[3.0][:rows], found[0.0][:rows])


def test_without_class_pictures_the_loss_is_the_photos_alone() -> None:
    given = batch(3)
    loss, parts = training_loss(
        **given, alphas_cumprod=schedule(), parameterization="eps", is_prior=torch.zeros(3, dtype=torch.bool)
    )
    assert parts.prior is None and loss.item() == pytest.approx(by_hand(given, "eps", [False] * 3, 1, 0).item(), 1e-5)


def test_the_frozen_models_own_prediction_stands_in_for_the_noise_in_the_class_rows() -> None:
    given = batch(4)
    is_prior = torch.tensor([True, False, True, False])
    own = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(9))
    loss, parts = training_loss(
        **given, alphas_cumprod=schedule(), parameterization="v", is_prior=is_prior, prior_target=own
    )
    assert parts.prior is not None
    assert parts.prior.item() == pytest.approx(((given["model_out"][[0, 2]] - own) ** 2).mean().item(), rel=1e-5)
    at_rest, parts = training_loss(
        given["model_out"].detach(),
        given["noise"],
        given["latents"],
        given["timesteps"],
        schedule(),
        "v",
        is_prior=is_prior,
        prior_target=given["model_out"][[0, 2]],
    )
    assert parts.prior is not None and parts.prior.item() == 0.0


def test_min_snr_weights_are_the_papers() -> None:
    steps, alphas = torch.arange(1000), schedule().double()
    snr = alphas / (1 - alphas)
    for kind, base in (("eps", snr), ("v", snr + 1)):
        wanted = (snr.clamp(max=GAMMA) / base).float()
        torch.testing.assert_close(min_snr_weights(steps, schedule(), kind, GAMMA), wanted, rtol=1e-4, atol=1e-7)
        assert torch.equal(min_snr_weights(steps, schedule(), kind, 0), torch.ones(1000))


def test_a_schedule_that_ends_in_pure_noise_gives_finite_losses() -> None:
    alphas = torch.from_numpy(NoiseSchedule(zero_terminal_snr=True).alphas_cumprod()).float()
    assert alphas[-1] == 0 and alphas[0].item() == pytest.approx(schedule()[0].item(), rel=1e-6)
    assert bool((alphas.diff() < 0).all())
    ends = torch.tensor([999, 0, 500])
    for kind in ("eps", "v"):
        for gamma in (0.0, GAMMA):
            given = {**batch(3), "timesteps": ends}
            loss, _ = training_loss(
                **given,
                alphas_cumprod=alphas,
                parameterization=kind,
                is_prior=torch.tensor([False, False, True]),
                snr_gamma=gamma,
            )
            (gradient,) = torch.autograd.grad(loss, given["model_out"])
            assert math.isfinite(loss.item()) and bool(gradient.isfinite().all())
    assert min_snr_weights(ends, alphas, "eps", GAMMA)[0] == 1 and min_snr_weights(ends, alphas, "v", GAMMA)[0] == 0
    given = batch(1)
    last = torch.tensor([999])
    assert torch.equal(noised(given["latents"], given["noise"], last, alphas), given["noise"])
    assert torch.equal(targets(given["latents"], given["noise"], last, alphas, "v"), -given["latents"])


def test_v_and_noised_latents_give_the_picture_back() -> None:
    given = batch(2)
    steps, a = given["timesteps"], schedule()[given["timesteps"]].view(-1, 1, 1, 1)
    x = noised(given["latents"], given["noise"], steps, schedule())
    v = targets(given["latents"], given["noise"], steps, schedule(), "v")
    torch.testing.assert_close(a.sqrt() * x - (1 - a).sqrt() * v, given["latents"], rtol=1e-4, atol=1e-5)


def masked(given: dict[str, Any], mask: Tensor) -> Tensor:
    loss, _ = training_loss(
        **given,
        alphas_cumprod=schedule(),
        parameterization="eps",
        is_prior=torch.zeros(len(mask), dtype=torch.bool),
        mask=mask,
    )
    return loss


def test_a_mask_leaves_out_what_it_covers_and_keeps_the_scale() -> None:
    given = batch(1)
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 1:3, 2:4] = 1
    loss = masked(given, mask)
    (gradient,) = torch.autograd.grad(loss, given["model_out"])
    assert bool((gradient[(mask == 0).expand_as(gradient)] == 0).all())
    inside = ((given["model_out"] - given["noise"])[..., 1:3, 2:4] ** 2).mean()
    assert loss.item() == pytest.approx(inside.item(), rel=1e-5)


def test_a_white_mask_changes_nothing_a_grey_one_neither_and_a_black_one_adds_nothing() -> None:
    given = batch(2)
    plain, white = by_hand(given, "eps", [False, False], 1, 0).item(), masked(given, torch.ones(2, 1, 3, 5)).item()
    assert white == pytest.approx(plain, rel=1e-5)
    assert masked(given, torch.full((2, 1, 3, 5), 0.3)).item() == pytest.approx(plain, rel=1e-5)
    black = masked(given, torch.zeros(2, 1, 3, 5))
    (gradient,) = torch.autograd.grad(black, given["model_out"])
    assert black.item() == 0 and bool((gradient == 0).all())


def test_half_precision_predictions_are_judged_in_fp32() -> None:
    given = batch(2)
    given["model_out"] = (given["model_out"].detach() * 300).half().requires_grad_(True)  # squares overflow in fp16
    loss, _ = training_loss(
        **given, alphas_cumprod=schedule(), parameterization="eps", is_prior=torch.tensor([False, True])
    )
    assert loss.dtype == torch.float32 and math.isfinite(loss.item())


def test_shapes_that_do_not_fit_are_refused() -> None:
    given = batch(2)
    rest: dict[str, Any] = {"alphas_cumprod": schedule(), "parameterization": "eps"}
    with pytest.raises(ValueError, match="one value a row"):
        training_loss(**given, **rest, is_prior=torch.tensor([True]))
    with pytest.raises(ValueError, match="mask"):
        training_loss(**given, **rest, is_prior=torch.tensor([True, False]), mask=torch.ones(2, 4, 3, 5))
    with pytest.raises(ValueError, match="prior_target"):
        training_loss(**given, **rest, is_prior=torch.tensor([True, False]), prior_target=given["noise"])
    with pytest.raises(ValueError, match="parameterization"):
        training_loss(**given, alphas_cumprod=schedule(), parameterization="x0", is_prior=torch.tensor([True, False]))
