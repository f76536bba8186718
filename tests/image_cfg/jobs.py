"""Jobs for the tests, and what can be seen of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.fabric.small_model import picture
from tests.shared.pictures import encoded

PICTURE, OTHER = encoded(picture(3, 64, 64)), encoded(picture(4, 64, 64))


def edit(**fields: Any) -> dict[str, list[Any]]:
    """Script arguments: the image is there unless said otherwise."""
    return {"instructpix2pix": [{"image": PICTURE, **fields}]}


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
