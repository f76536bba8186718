"""Apply normalized attention guidance (Chen et al. 2025, arXiv 2505.21179) to one sampling.

Every row that sees the prompt also attends to the negative prompt, layer by layer, and is moved away from what it finds
there. So it needs no unconditional row, and works at CFG scale 1 and with distilled models, which have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lib_methods.attention import intercept
from lib_methods.attention.cross import CrossAttention, cross_attentions, prompt_input
from lib_methods.attention.intercept import Original, Replacement
from lib_methods.denoiser import DenoiserCall, LoadedModel, Role, Sampling, Unsupported, editing_of
from lib_methods.guidance import TINY
from lib_methods.nag.settings import NagSettings

NO_LAYERS = "NAG cannot be used with this checkpoint: its UNet has no cross-attention that can be reached."


def unsuited(model: LoadedModel) -> str:
    """Why NAG cannot work with this checkpoint; empty if it can."""
    return "" if cross_attentions(model.unet) else NO_LAYERS


def attach(sampling: Sampling, settings: NagSettings, negatives: Sequence[str]) -> NagHook | None:
    """Let NAG guide a sampling; returns its part, or None if the settings change nothing.

    negatives: the job's negative prompt for every image of the batch. Raises `Unsupported`.
    """
    if not settings.active:
        return None
    if not cross_attentions(sampling.unet):
        raise Unsupported(NO_LAYERS)
    own = settings.negative_prompt
    negative = editing_of(sampling).embed([own or text for text in negatives], negative=True).context
    hook = NagHook(sampling, negative, settings)
    sampling.add_hook(hook)
    return hook


def nag(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """What a layer attends to with the prompt, moved away from what it attends to with the negative prompt.

    Section 3.2 of the paper: `z = scale * positive - (scale - 1) * negative`; where its L1 norm over a pixel's channels
    is more than `tau` times that of `positive`, it is brought down to that; then `alpha * z + (1 - alpha) * positive`.

    positive, negative: (rows, heads, pixels, channels / heads). scale: from 1, where nothing changes.
    """
    if scale == 1:
        return positive
    moved = scale * positive - (scale - 1) * negative
    found, most = (_l1(moved), tau * _l1(positive))
    limited = moved * (most / found.clamp(min=TINY)).clamp(max=1).to(moved.dtype)
    return torch.lerp(positive, limited, alpha)


def _l1(attended: Tensor) -> Tensor:
    return attended.float().abs().sum((1, 3), keepdim=True)


class NagHook:
    """NAG's part in one sampling. negative: the batch's negative prompts, (batch, tokens, dim)."""

    missed = ""
    idle = "No cross-attention layer could be reached. Turn off other extensions that change cross-attention."

    def __init__(self, sampling: Sampling, negative: Tensor, settings: NagSettings) -> None:
        self.sampling, self.negative, self.settings = sampling, negative, settings
        self.acted = False

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        layers = cross_attentions(self.sampling.unet)
        with intercept((layer.module, self._reader(layer, call)) for layer in layers):
            yield

    def _reader(self, layer: CrossAttention, call: DenoiserCall) -> Replacement:
        settings = self.settings

        def read(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
            rows, prompt = call.current_rows, prompt_input(args, kwargs)
            chosen = [i for i, row in enumerate(rows) if row.role is Role.COND]
            if prompt is None or prompt.mask is not None or len(rows) != len(hidden) or not chosen:
                return original(hidden, *args, **kwargs)
            self.acted = True
            query = layer.project(hidden, "q")
            key, value = layer.project(prompt.context, "k"), layer.project(prompt.values, "v")
            out = scaled_dot_product_attention(query, key, value)
            away = self.negative.to(prompt.context)[[rows[i].image for i in chosen]]
            key, value = layer.project(away, "k"), layer.project(away, "v")
            found = scaled_dot_product_attention(query[chosen], key, value)
            out[chosen] = nag(out[chosen], found, settings.scale, settings.tau, settings.alpha)
            return layer.output(out)

        return read
