"""Turns the UNet's output into what samplers want: the denoised image in sigma space, or eps in alpha space.

In sigma space (k-diffusion) a noisy latent is `x = x0 + sigma * noise`; in alpha space (DDPM, DDIM) it is
`sqrt(abar) * x0 + sqrt(1 - abar) * noise`. The two differ by the factor `sqrt(1 + sigma^2)`; see Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models", appendix C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Predict = Callable[..., torch.Tensor]


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values` (B,) shaped to multiply `like` (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class SigmaDenoiser(nn.Module):
    """Denoised images for noisy latents in sigma space, from a model that predicts eps or v at discrete timesteps.

    Attributes: `inner_model` the host's model, `sigmas` and `log_sigmas` (T,) in rising order.
    """

    sigmas: torch.Tensor
    log_sigmas: torch.Tensor

    def __init__(self, model: Any, quantize: bool = False, alphas_cumprod: torch.Tensor | None = None) -> None:
        super().__init__()
        self.inner_model = model
        self.quantize = quantize
        abar = model.alphas_cumprod if alphas_cumprod is None else alphas_cumprod
        sigmas = ((1 - abar) / abar).sqrt()
        self.register_buffer("sigmas", sigmas, persistent=False)
        self.register_buffer("log_sigmas", sigmas.log(), persistent=False)

    @property
    def sigma_min(self) -> torch.Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    def get_sigmas(self, n: int | None = None) -> torch.Tensor:
        """`n` sigmas at evenly spaced timesteps from the largest to the smallest, and a zero."""
        if n is None:
            sigmas = self.sigmas.flip(0)
        else:
            steps = torch.linspace(len(self.sigmas) - 1, 0, n, device=self.sigmas.device)
            sigmas = self.t_to_sigma(steps)
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def sigma_to_t(self, sigma: torch.Tensor, quantize: bool | None = None) -> torch.Tensor:
        """Timesteps of `sigma` (any shape): fractional, interpolated in log sigma, or the nearest when quantized."""
        log_sigma = sigma.log().to(self.log_sigmas)
        flat = log_sigma.reshape(-1)
        if self.quantize if quantize is None else quantize:
            nearest = (flat[:, None] - self.log_sigmas[None]).abs().argmin(dim=1)
            return nearest.reshape(sigma.shape)
        high = torch.searchsorted(self.log_sigmas, flat).clamp(1, len(self.log_sigmas) - 1)
        low = high - 1
        span = self.log_sigmas[high] - self.log_sigmas[low]
        fraction = ((flat - self.log_sigmas[low]) / span).clamp(0, 1)
        return (low + fraction).reshape(sigma.shape)

    def t_to_sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Sigmas of (fractional) timesteps `t`: the inverse of sigma_to_t."""
        t = t.to(self.log_sigmas).float()
        low, high = t.floor().long(), t.ceil().long()
        fraction = t - low
        return ((1 - fraction) * self.log_sigmas[low] + fraction * self.log_sigmas[high]).exp()

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Denoised latents for `x` (B, C, h, w) at `sigma` (B,); `kwargs` (cond) go to the model."""
        scale = per_row((1 + sigma**2).rsqrt(), x)
        out = self.inner_model.apply_model(x * scale, self.sigma_to_t(sigma), **kwargs)
        return self.from_output(x, per_row(sigma, x), scale, out)

    def from_output(self, x: torch.Tensor, sigma: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The denoised latents, given the model's output. `scale` is 1 / sqrt(1 + sigma^2)."""
        if self.inner_model.parameterization == "v":
            return x * scale**2 - sigma * scale * out
        return x - sigma * out


class LCMDenoiser(SigmaDenoiser):
    """The denoiser of latent consistency models: 50 timesteps, and a skip connection that is exact at sigma 0.

    Luo et al. 2023, "Latent Consistency Models", equations 9 and 10, with sigma_data 0.5 and timesteps scaled by 10.
    """

    def __init__(self, model: Any, original_timesteps: int = 50) -> None:
        total = len(model.alphas_cumprod)
        self.skip = max(1, total // original_timesteps)
        super().__init__(model, alphas_cumprod=model.alphas_cumprod[self.skip - 1 :: self.skip])

    def sigma_to_t(self, sigma: torch.Tensor, quantize: bool | None = None) -> torch.Tensor:
        """The nearest of the timesteps that the model was distilled on."""
        return super().sigma_to_t(sigma, quantize=True) * self.skip + self.skip - 1

    def t_to_sigma(self, t: torch.Tensor) -> torch.Tensor:
        return super().t_to_sigma(((t.float() - (self.skip - 1)) / self.skip).clamp(0, len(self.sigmas) - 1))

    def get_sigmas(self, n: int | None = None) -> torch.Tensor:
        if n is None:
            return super().get_sigmas(None)
        last = len(self.sigmas) * self.skip - 1
        sigmas = self.t_to_sigma(torch.linspace(last, self.skip - 1, n, device=self.sigmas.device))
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def from_output(self, x: torch.Tensor, sigma: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        denoised = super().from_output(x, sigma, scale, out)
        t = self.sigma_to_t(sigma) * 10.0
        c_skip = 0.25 / (t**2 + 0.25)
        c_out = t / (t**2 + 0.25).sqrt()
        return c_out * denoised + c_skip * x * scale


class TimestepDenoiser(nn.Module):
    """eps for noisy latents in alpha space; `inner_model` is the host's model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner_model = model

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """eps for `x` (B, C, h, w) at `timesteps` (B,); `kwargs` (cond) go to the model."""
        out = self.inner_model.apply_model(x, timesteps, **kwargs)
        if self.inner_model.parameterization != "v":
            return out
        abar = self.inner_model.alphas_cumprod[timesteps.long()]
        return per_row(abar.sqrt(), x) * out + per_row((1 - abar).sqrt(), x) * x
