"""Feedback pictures on their way to the model: fitted to the job's size, and given noise of their own."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def crop_to_fill(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The largest centred part of the picture with the wanted aspect, resized to `width` by `height` pixels. No
    margins, no distortion."""
    if width < 1 or height < 1:
        raise ValueError("width and height have to be positive")
    scale = min(image.width / width, image.height / height)
    # at most the picture itself: where one side fits exactly, the product may round to more
    part_width, part_height = min(image.width, width * scale), min(image.height, height * scale)
    left, top = (image.width - part_width) / 2, (image.height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    return image.convert("RGB").resize((width, height), resample, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as fp32 tensor of shape (3, H, W) in [-1, 1]."""
    return (
        torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()
    )


def image_seed(image_id: str, seed: int, purpose: str) -> int:
    """A seed that depends on the picture, the user's seed and what it is for, and on nothing else."""
    digest = hashlib.sha256(f"{image_id}:{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


def reference_noise(image_id: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The picture's noise, fp32 on the CPU: the same in every call, job, batch and on every device."""
    generator = torch.Generator().manual_seed(image_seed(image_id, seed, "noise"))
    return torch.randn(shape, generator=generator)
