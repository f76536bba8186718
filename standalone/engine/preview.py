"""Live previews: cheap images of latents during sampling.

A linear map from a latent's channels to colours, fitted once per model to what its own VAE makes of random latents: so
it holds for any VAE. Small decoders (below ten million weights) are faster than they are worth approximating.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

LARGE_DECODER = 10_000_000
_maps: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()


def decoder_is_large(model: Any) -> bool:
    """Whether a preview by the VAE itself would slow the sampling down."""
    return sum(p.numel() for p in model.first_stage_model.decoder.parameters()) > LARGE_DECODER


def _fit(model: Any) -> torch.Tensor:
    """Least-squares map (C + 1, 3) from a latent's channels and a one to the mean colour of its pixels."""
    generator = torch.Generator().manual_seed(0)
    channels = model.latent_channels
    # smooth latents, like a picture's: noise at half the resolution, enlarged
    coarse = torch.randn(1, channels, 8, 8, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear").to(model.device, model.dtype)
    colours = torch.nn.functional.adaptive_avg_pool2d(model.decode_first_stage(latents).float(), (16, 16))
    inputs = latents.float().permute(0, 2, 3, 1).reshape(-1, channels)
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1).cpu()
    return torch.linalg.lstsq(inputs, colours.permute(0, 2, 3, 1).reshape(-1, 3).cpu()).solution


def linear_decode(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, h, w), one pixel per latent, about [-1, 1]."""
    if model not in _maps:
        with torch.no_grad():
            _maps[model] = _fit(model)
    weights = _maps[model].to(latents.device)
    colours = torch.einsum("bchw,cr->brhw", latents.float(), weights[:-1])
    return colours + weights[-1].reshape(1, 3, 1, 1)
