"""The loss of a run: photos and class images apart, each row with its own weight (arXiv 2208.12242, section 3).

    loss = mean over photos of (w * error) + lambda * mean over class images of (w * error)

`error` is a row's mean squared error, `w` its min-SNR weight (Hang et al. 2023, arXiv 2303.09556). All of it is
computed in fp32, whatever the model computes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.cascade.augmentation import augmented, enlarged, kept_signal, level_label, low_resolution
from lib_methods.errors import UserError


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
) -> tuple[Tensor, LossParts]:
    """The loss, a scalar in fp32, and its parts.

    model_out, noise, latents: (B, C, h, w). timesteps: (B,). is_prior: (B,), true for the rows of the class, which may
    stand anywhere. prior_weight: lambda. snr_gamma: see `min_snr_weights`. mask: (B, 1, h, w) in [0, 1], where a row
    counts; its error is the mean over the masked area, and a row whose mask is empty adds nothing. prior_target:
    (rows of the class, C, h, w), what the class' rows are held to instead of their own noise: the frozen model's
    prediction. Raises ValueError for shapes that do not fit.
    """
    if model_out.shape != latents.shape or noise.shape != latents.shape:
        raise ValueError(f"shapes differ: {tuple(model_out.shape)}, {tuple(noise.shape)}, {tuple(latents.shape)}")
    if is_prior.shape != latents.shape[:1] or timesteps.shape != latents.shape[:1]:
        raise ValueError("is_prior and timesteps need one value a row")
    of_class = is_prior.bool().nonzero().flatten().to(model_out.device)
    of_photos = (~is_prior.bool()).nonzero().flatten().to(model_out.device)
    if parameterization not in ("eps", "v"):
        raise ValueError(f"unknown parameterization {parameterization!r}")
    target = targets(latents, noise, timesteps, alphas_cumprod, parameterization)
    if prior_target is not None:
        if prior_target.shape != (len(of_class), *latents.shape[1:]):
            raise ValueError("prior_target needs one prediction for each row of the class")
        target = target.index_copy(0, of_class, prior_target.detach().to(target))
    errors = _row_errors(model_out.float(), target, mask)
    errors = errors * min_snr_weights(timesteps, alphas_cumprod, parameterization, snr_gamma).to(errors.device)
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


def _row_errors(out: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    squares = (out - target).square()
    if mask is None:
        return squares.flatten(1).mean(1)
    if mask.shape != (out.shape[0], 1, *out.shape[2:]):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit {tuple(out.shape)}")
    share = mask.to(out.device, torch.float32)
    area = share.flatten(1).sum(1) * out.shape[1]
    return (squares * share).flatten(1).sum(1) / area.clamp(min=1e-6)


def _mean_of(errors: Tensor, rows: Tensor) -> Tensor | None:
    return errors[rows].mean() if len(rows) else None


# -- the super-resolution stage of a pixel cascade (Imagen, DeepFloyd IF) learns the subject, too


LEVEL_BEFORE = 1e-3  # of the augmentation, as upscalers are trained
LEVEL = 1e-5  # as they are fine-tuned on a subject


def predicted_noise(out: Tensor, channels: int) -> Tensor:
    """The noise of a UNet's output (B, C or 2C, H, W). The second half, where there is one, is the variance, which this
    loss says nothing about."""
    if out.shape[1] not in (channels, 2 * channels):
        raise ValueError(f"an output of {out.shape[1]} channels does not fit images of {channels}")
    return out[:, :channels]


@dataclass(frozen=True)
class Draw:
    """What chance decides about a step. timesteps: (B,). noise: of the image, augmentation: of the condition, both
    (B, C, H, W) and independent of each other."""

    timesteps: Tensor
    noise: Tensor
    augmentation: Tensor

    @staticmethod
    def like(images: Tensor, steps: int, generator: torch.Generator) -> Draw:
        """Drawn on the CPU, so that a run is the same on any device."""
        first, second = torch.randn(2, *images.shape, generator=generator)
        timesteps = torch.randint(steps, images.shape[:1], generator=generator)
        return Draw(timesteps.to(images.device), first.to(images), second.to(images))


class Upscaler:
    """A super-resolution UNet with its noise schedules, as a run that fine-tunes it needs them.

    Fine-tuning the first stage alone leaves the upscaler to invent the subject's details from what it knows of the
    class. Its noise augmentation, with which it learned to forgive the first stage's faults, is lowered from 1e-3 to
    1e-5: at the former, fine patterns of the subject blur (arXiv 2208.12242).

    unet: as `diffusers` builds it for IF's stage II: 2C input channels, the noisy image first and then the
    low-resolution image in full size; C output channels, or 2C with a learned variance behind the noise; and the
    augmentation's level where other models have a class (`class_embed_type` "timestep").
    alphas_cumprod: (T,) of the image's noise, which the UNet predicts (eps). augmentation_alphas: (T,) of the
    condition's, None for the same. level: the augmentation's, see `kept_signal`. Raises UserError where the UNet
    is none of a super-resolution stage.
    """

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor,
        *,
        augmentation_alphas: Tensor | None = None,
        level: float = LEVEL,
    ) -> None:
        config: Any = unet.config
        channels = config.in_channels // 2
        if config.in_channels % 2 or config.out_channels not in (channels, 2 * channels):
            raise UserError(
                f"This is not a super-resolution stage: its UNet has {config.in_channels} input and "
                f"{config.out_channels} output channels, not two images and one or two."
            )
        if config.class_embed_type != "timestep":
            raise UserError(
                "This is not the super-resolution stage of an IF cascade: its UNet takes no noise level for the "
                "small image."
            )
        self.unet, self.channels, self.level = unet, int(channels), level
        self.alphas_cumprod = alphas_cumprod
        self.augmentation_alphas = alphas_cumprod if augmentation_alphas is None else augmentation_alphas
        kept_signal(level, self.augmentation_alphas)  # an impossible level shows here, not in the middle of a run

    def condition(self, low: Tensor, size: tuple[int, int], noise: Tensor) -> Tensor:
        """What the UNet is shown of low-resolution images (B, C, h, w): in full size, with the level's noise."""
        return augmented(enlarged(low, size), noise, self.level, self.augmentation_alphas)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, text: Tensor) -> Tensor:
        """The noise in images (B, C, H, W). condition: see above. text: hidden states (B, T, D)."""
        labels = torch.full(
            noisy.shape[:1], level_label(self.level, len(self.augmentation_alphas)), device=noisy.device
        )
        both = torch.cat([noisy, condition], dim=1)
        out = self.unet(both, timesteps, encoder_hidden_states=text, class_labels=labels, return_dict=False)[0]
        return predicted_noise(out, self.channels)

    def loss(
        self,
        images: Tensor,
        text: Tensor,
        draw: Draw,
        *,
        is_prior: Tensor,
        side: int,
        prior_weight: float = 1.0,
        snr_gamma: float = 0.0,
    ) -> tuple[Tensor, LossParts]:
        """The loss of photos and class images in one batch, as in `training_loss`.

        images: (B, C, H, W) in [-1, 1], in full resolution. text: (B, T, D). is_prior: (B,). side: the short side of
        the first stage's images.
        """
        size = (images.shape[-2], images.shape[-1])
        condition = self.condition(low_resolution(images, side), size, draw.augmentation)
        noisy = noised(images, draw.noise, draw.timesteps, self.alphas_cumprod).to(images.dtype)
        predicted = self.predict(noisy, draw.timesteps, condition, text)
        return training_loss(
            predicted,
            draw.noise,
            images,
            draw.timesteps,
            self.alphas_cumprod,
            "eps",
            is_prior=is_prior,
            prior_weight=prior_weight,
            snr_gamma=snr_gamma,
        )
