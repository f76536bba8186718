"""Images as tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as fp32 tensor of shape (3, H, W) in [-1, 1]."""
    return (
        torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()
    )


def to_image(pixels: Tensor) -> Image.Image:
    """A tensor (3, H, W) in [-1, 1] as an RGB image."""
    levels = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy(), "RGB")
