"""The noise of each feedback image."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def image_seed(image_id: str, seed: int, purpose: str) -> int:
    """A seed that depends only on the image, the user's seed and its purpose."""
    digest = hashlib.sha256(f"{image_id}:{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


def reference_noise(image_id: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The image's noise, fp32 on the CPU: the same in every call, job, batch and on every device."""
    generator = torch.Generator().manual_seed(image_seed(image_id, seed, "noise"))
    return torch.randn(shape, generator=generator)
