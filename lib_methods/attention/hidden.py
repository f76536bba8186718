"""What the hidden states of a layer tell: how its tokens lie over the latents, and what it computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Height and width of a layer's token grid for a latent of the given size; None if another extension merged
    tokens."""
    factor = size_factor(tokens, (height, width))
    return None if factor is None else (-(-height // factor), -(-width // factor))


def size_factor(tokens: int, latent_size: tuple[int, int]) -> int | None:
    """How many times smaller than the latent a layer of so many tokens is: 1, 2, 4, 8; None where tokens were
    merged."""
    height, width = latent_size
    factor = 1
    while height * width > tokens:
        height, width, factor = (height + 1) // 2, (width + 1) // 2, factor * 2
    return factor if height * width == tokens else None


def running_precision(hidden: Tensor) -> torch.dtype:
    """What a layer's projections compute in: under autocast they round their input, whatever its type."""
    if hidden.is_cuda and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    return hidden.dtype
