"""The loss of a run: photos and class images apart, each row with its own weight (arXiv 2208.12242, section 3).

    loss = mean over photos of (w * error) + lambda * mean over class images of (w * error)

`error` is a row's mean squared error, `w` its min-SNR weight (Hang et al. 2023, arXiv 2303.09556). All of it is
computed in fp32, whatever the model computes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib_methods.cascade.variance import variance_bound


@dataclass(frozen=True)
class LossParts:
    """The two means before lambda, without gradients; None where the batch has no such rows."""

    subject: Tensor | None
    prior: Tensor | None


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """sqrt(a) * latents + sqrt(1 - a) * noise, in fp32. latents, noise: (B, C, h, w). timesteps: (B,), integers."""
    signal, sigma = _coefficients(timesteps, alphas_cumprod, latents)
    return signal * latents.float() + sigma * noise.float()


def targets(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, parameterization: str) -> Tensor:
    """What the model is to predict, in fp32: the noise, or v = sqrt(a) * noise - sqrt(1 - a) * latents (Salimans and Ho
    2022, arXiv 2202.00512)."""
    if parameterization == "eps":
        return noise.float()
    signal, sigma = _coefficients(timesteps, alphas_cumprod, latents)
    return signal * noise.float() - sigma * latents.float()


def min_snr_weights(timesteps: Tensor, alphas_cumprod: Tensor, parameterization: str, gamma: float) -> Tensor:
    """The rows' weights, (B,): min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v; ones where gamma is 0.

    With a signal-to-noise ratio of zero the first one is 1, its limit, and the second one 0: v is then the image
    itself, of which pure noise tells nothing.
    """
    kept = alphas_cumprod.to(timesteps.device)[timesteps].double()
    if gamma <= 0:
        return torch.ones_like(kept, dtype=torch.float32)
    # written without a division by 1 - a or by snr, each of which may be zero: snr = a / (1 - a)
    below = kept <= gamma * (1 - kept)
    if parameterization == "eps":
        weights = torch.where(below, torch.ones_like(kept), gamma * (1 - kept) / kept.clamp(min=1e-12))
    else:
        weights = torch.where(below, kept, gamma * (1 - kept))  # 1 / (snr + 1) = 1 - a
    return weights.float()


def training_loss(
    model_out: Tensor,
    noise: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    parameterization: str,
    *,
    is_prior: Tensor,
    prior_weight: float = 1.0,
    snr_gamma: float = 0.0,
    mask: Tensor | None = None,
    prior_target: Tensor | None = None,
    variance: str = "",
) -> tuple[Tensor, LossParts]:
    """The loss, a scalar in fp32, and its parts.

    model_out, noise, latents: (B, C, h, w); of a pixel cascade model_out is (B, 2C, h, w), with the variance behind the
    prediction. timesteps: (B,). is_prior: (B,), true for the rows of the class, which may
    stand anywhere. prior_weight: lambda. snr_gamma: see `min_snr_weights`. mask: (B, 1, h, w) in [0, 1], where a row
    counts; its error is the mean over the masked area, and a row whose mask is empty adds nothing. prior_target:
    (rows of the class, C, h, w), what the class' rows are held to instead of their own noise: the frozen model's
    prediction. variance: of which kind the model's is (`cascade.variance.KINDS`): T / 1000 of its bound is added, the
    paper's share; without a kind the variance is not trained. Raises ValueError for shapes that do not fit.
    """
    channels = latents.shape[1]
    predicted, learned = model_out[:, :channels], model_out[:, channels:]
    if predicted.shape != latents.shape or noise.shape != latents.shape or learned.shape[1] not in (0, channels):
        raise ValueError(f"shapes differ: {tuple(model_out.shape)}, {tuple(noise.shape)}, {tuple(latents.shape)}")
    if is_prior.shape != latents.shape[:1] or timesteps.shape != latents.shape[:1]:
        raise ValueError("is_prior and timesteps need one value a row")
    of_class = is_prior.bool().nonzero().flatten().to(model_out.device)
    of_photos = (~is_prior.bool()).nonzero().flatten().to(model_out.device)
    if parameterization not in ("eps", "v"):
        raise ValueError(f"unknown parameterization {parameterization!r}")
    truth = target = targets(latents, noise, timesteps, alphas_cumprod, parameterization)
    if prior_target is not None:
        if prior_target.shape != (len(of_class), *latents.shape[1:]):
            raise ValueError("prior_target needs one prediction for each row of the class")
        target = target.index_copy(0, of_class, prior_target.detach().to(target))
    errors = _row_means((predicted.float() - target).square(), mask)
    errors = errors * min_snr_weights(timesteps, alphas_cumprod, parameterization, snr_gamma).to(errors.device)
    if variance and learned.shape[1]:
        bound = variance_bound(learned, predicted - truth, timesteps, alphas_cumprod, parameterization, variance)
        errors = errors + len(alphas_cumprod) / 1000 * _row_means(bound, mask)
    subject, prior = _mean_of(errors, of_photos), _mean_of(errors, of_class)
    loss = errors.new_zeros(())
    if subject is not None:
        loss = loss + subject
    if prior is not None:
        loss = loss + prior_weight * prior
    return loss, LossParts(None if subject is None else subject.detach(), None if prior is None else prior.detach())


def _coefficients(timesteps: Tensor, alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    kept = alphas_cumprod.to(like.device)[timesteps.to(like.device)].double()
    shape = (-1,) + (1,) * (like.ndim - 1)
    return kept.sqrt().float().view(shape), (1 - kept).sqrt().float().view(shape)


def _row_means(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.flatten(1).mean(1)
    if mask.shape != (values.shape[0], 1, *values.shape[2:]):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit {tuple(values.shape)}")
    share = mask.to(values.device, torch.float32)
    area = share.flatten(1).sum(1) * values.shape[1]
    return (values * share).flatten(1).sum(1) / area.clamp(min=1e-6)


def _mean_of(errors: Tensor, rows: Tensor) -> Tensor | None:
    return errors[rows].mean() if len(rows) else None
