"""Where a word attends: masks, heat maps, and the sheet that shows them beside source, reconstruction and edit.

Masks are tensors of shape (n, 1, h, w) on the latents, 1 where the image may change, 0 where it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.maps import Maps

GAP, LINE = 8, 22
LEAST_COLUMN = 92  # for the longest name
# dark blue, violet, orange, light yellow: told apart by brightness alone, too
_RAMP = np.array([[20, 11, 82], [160, 32, 122], [240, 110, 40], [252, 245, 170]], dtype=np.float32)


def word_share(maps: Maps, positions: Sequence[int]) -> Tensor:
    """How much of every pixel's attention goes to a word, (rows, 1, h, w) on the latents, fp32 in [0, 1].

    positions: the word's tokens in the prompt, counted from 0, which is the start token. The mean over heads and
    layers; those smaller than the latents are enlarged. Raises `Unsupported` for positions outside of the prompt.
    """
    if not positions:
        raise Unsupported("The word is not in the caption, so where it attends cannot be seen.")
    total: Tensor | None = None
    for name, seen in maps.by_layer.items():
        if min(positions) < 0 or max(positions) >= seen.shape[-1]:
            raise Unsupported("The word is not in the part of the caption that the model reads.")
        share = seen.detach()[..., list(positions)].float().sum(-1).mean(1)
        grid = share.unflatten(1, maps.grid(name))[:, None]
        enlarged = interpolate(grid, size=maps.latent_size, mode="bilinear", align_corners=False)
        total = enlarged if total is None else total + enlarged
    if total is None:
        raise ValueError("no maps were recorded")
    return (total / len(maps.by_layer)).clamp(0, 1)


class WordAttention:
    """The mean of `word_share` over the steps of a sampling."""

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = tuple(positions)
        self.steps = 0
        self._sum: Tensor | None = None

    def add(self, maps: Maps) -> None:
        """Count the maps of a step; all steps have the same rows and latents."""
        share = word_share(maps, self.positions)
        self._sum = share if self._sum is None else self._sum + share
        self.steps += 1

    def heat(self) -> Tensor:
        """Where the word attends, (rows, 1, h, w): 0 where least and 1 where most in each row."""
        if self._sum is None:
            raise ValueError("no maps were recorded")
        return normalised(self._sum / self.steps)


def normalised(share: Tensor) -> Tensor:
    """Stretched to [0, 1] in each row of (rows, 1, h, w); 1 everywhere in a row that knows no difference."""
    low, high = share.amin((1, 2, 3), keepdim=True), share.amax((1, 2, 3), keepdim=True)
    span = high - low
    is_flat = span <= 1e-6 * high.abs().clamp_min(1e-6)
    return torch.where(is_flat, torch.ones_like(share), (share - low) / torch.where(is_flat, 1.0, span))


def threshold(heat: Tensor, level: float, grow: int = 0) -> Tensor:
    """A hard mask of a heat map (n, 1, h, w): 1 from `level` up, 0 below, then `grow` positions larger all round."""
    hard = (heat >= level).to(heat.dtype)
    return max_pool2d(hard, 2 * grow + 1, stride=1, padding=grow) if grow > 0 else hard


def overlay(picture: Image.Image, mask: Tensor, opacity: float = 0.7) -> Image.Image:
    """The picture in RGB with a mask of one row, (h, w) or (1, 1, h, w), laid over: untouched where it is 0, bright
    where it is 1.

    opacity: of the colour where the mask is 1, 0 to 1.
    """
    if mask.numel() != mask.shape[-2] * mask.shape[-1]:
        raise ValueError(f"one mask is shown at a time, not {tuple(mask.shape)}")
    values = mask.detach().float().nan_to_num(0).clamp(0, 1).reshape(1, 1, *mask.shape[-2:]).cpu()
    size = (picture.height, picture.width)
    share = interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
    places = share * (len(_RAMP) - 1)
    colours = np.stack([np.interp(places, range(len(_RAMP)), _RAMP[:, c]) for c in range(3)], -1)
    below = np.asarray(picture.convert("RGB"), dtype=np.float32)
    mixed = below + (opacity * share)[..., None] * (colours - below)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Images of one size side by side, each under its name; small ones stand apart, so that the names have room."""
    width, height = pictures[0][1].size
    column = max(width, LEAST_COLUMN)
    canvas = Image.new("RGB", (len(pictures) * (column + GAP) - GAP, height + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, picture) in enumerate(pictures):
        left = index * (column + GAP)
        draw.text((left + 2, 5), name, fill="black")
        canvas.paste(picture.convert("RGB").resize((width, height)), (left, LINE))
    return canvas
