"""Self-attention made worse on purpose, so that guidance can lead away from what it gives: PAG and SEG.

PAG: Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance" (arXiv 2403.17377).
SEG: Hong 2024, "Smoothed Energy Guidance" (arXiv 2408.00760). Either adds `scale * (c - c')` to the guided prediction,
with c the prediction with the prompt and c' the same from a model whose chosen layers are perturbed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from lib_methods.attention import SelfAttention, self_attentions
from lib_methods.attention.intercept import Original, Replacement
from lib_methods.attention.layers import token_grid
from lib_methods.denoiser import DenoiserCall, Sampling
from lib_methods.guiders.settings import ALL_LAYERS, MIDDLE, PAG, GuidanceSettings

WHOLE = 9999.9
"""Above this sigma, as in the published code, a blur is the mean of the whole image."""
_MIDDLES = ("mid_block", "middle_block")


def chosen_layers(unet: torch.nn.Module, which: str) -> Sequence[SelfAttention]:
    """The self-attention layers that are perturbed: those of the middle block, the widest ones (coarse), or all."""
    layers = self_attentions(unet)
    if which == MIDDLE:
        return [layer for layer in layers if layer.name.startswith(_MIDDLES)]
    widest = max((layer.width for layer in layers), default=0)
    return layers if which == ALL_LAYERS else [layer for layer in layers if layer.width == widest]


def blur(values: Tensor, grid: tuple[int, int], sigma: float) -> Tensor:
    """A Gaussian blur over the positions of a token grid, or, with a sigma above `WHOLE`, their mean.

    values: (rows, heads, tokens, channels), tokens row by row. sigma: in tokens. As in the paper's code, the kernel is
    no wider than the grid, and the grid is mirrored at its ends.
    """
    rows, heads, tokens, channels = values.shape
    if sigma > WHOLE:
        return values.mean(2, keepdim=True).expand_as(values)
    image = values.transpose(2, 3).reshape(-1, 1, *grid)
    size = math.ceil(6 * sigma) | 1
    for axis, side in ((2, grid[0]), (3, grid[1])):
        width = min(size, side | 1)
        half = width // 2
        weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=values.device) / sigma) ** 2)
        kernel = (weights / weights.sum()).to(values)
        padding = (0, 0, half, half) if axis == 2 else (half, half, 0, 0)
        image = conv2d(pad(image, padding, mode="reflect"), kernel.view(1, 1, *((-1, 1) if axis == 2 else (1, -1))))
    return image.reshape(rows, heads, channels, tokens).transpose(2, 3)


def reader(
    layer: SelfAttention, call: DenoiserCall, sampling: Sampling, settings: GuidanceSettings, seen: set[str]
) -> Replacement:
    """What stands in for a layer: in perturbed rows each token sees itself alone (PAG), or queries are blurred (SEG).

    seen: takes the names of the layers where it has done so.
    """

    def attended(hidden: Tensor, inputs: tuple[Tensor, Tensor]) -> Tensor | None:
        if settings.perturbation == PAG:
            return layer.project(hidden, "v")
        grid = token_grid(hidden.shape[1], *sampling.latent_size)
        if grid is None:  # another extension has merged tokens, or runs the image in tiles
            return None
        query, key, value = (layer.project(t, which) for t, which in zip((hidden, *inputs), "qkv"))
        return scaled_dot_product_attention(blur(query, grid, settings.seg_blur), key, value)

    def read(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        rows, inputs = call.current_rows, layer.key_value_inputs(hidden, args, kwargs)
        chosen = [i for i, row in enumerate(rows) if row.perturbed]
        if not chosen or inputs is None or len(rows) != len(hidden):
            return original(hidden, *args, **kwargs)
        key, value = inputs
        found = attended(hidden[chosen], (key[chosen], value[chosen]))
        if found is None:
            return original(hidden, *args, **kwargs)
        seen.add(layer.name)
        if len(chosen) == len(rows):
            return layer.output(found)
        out = original(hidden, *args, **kwargs).clone()
        out[chosen] = layer.output(found)
        return out

    return read
