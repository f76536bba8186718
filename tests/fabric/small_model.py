"""A small UNet and images for it, so that FABRIC can be looked at without any host."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels of 32 and 64 channels with random weights."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """An image of random colour patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)


class Album:
    """Pictures by hash, as the store gives them."""

    def __init__(self) -> None:
        self.pictures: dict[str, Image.Image] = {}

    def add(self, image: Image.Image) -> str:
        name = hashlib.sha256(image.tobytes()).hexdigest()
        self.pictures[name] = image
        return name

    def load(self, name: str) -> Image.Image:
        return self.pictures[name]
