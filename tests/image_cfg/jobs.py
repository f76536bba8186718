"""Jobs for the tests, and what can be seen of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.fabric.small_model import picture


def encoded(image: Image.Image) -> str:
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


PICTURE, OTHER = encoded(picture(3, 64, 64)), encoded(picture(4, 64, 64))


def edit(**fields: Any) -> dict[str, list[Any]]:
    """Script arguments: the picture is there unless said otherwise."""
    return {"instructpix2pix": [{"image": PICTURE, **fields}]}


def pixels(processed: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in processed.images[processed.index_of_first_image :]])


@contextmanager
def unet_runs() -> Iterator[list[int]]:
    """How many rows went through the UNet, run by run."""
    from modules import shared

    seen: list[int] = []
    unet = shared.sd_model.model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


def spread(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((one - other).abs().max() / other.abs().max())
