"""The attention layers of a UNet, described in one way for `ldm`, `sgm`, `ldm_patched`, `backend.nn` and diffusers.

All of them have the same parts: a transformer block with `attn1` (self) and `attn2` (cross), each with `to_q`,
`to_k`, `to_v`, `to_out` and `heads`. They are recognised by these parts and the class name of the block, so no codebase
is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

_BLOCK = "BasicTransformerBlock"
_PARTS = ("to_q", "to_k", "to_v", "to_out", "heads")
# diffusers' Attention can carry these between projection and product; no Stable Diffusion UNet uses them
_UNUSUAL = ("norm_q", "norm_k", "group_norm", "spatial_norm", "add_k_proj")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer.

    name: its path in the UNet. module: the layer itself, whose `forward` takes hidden states of shape (rows, tokens,
    channels).
    """

    name: str
    module: nn.Module

    @property
    def heads(self) -> int:
        return int(cast(int, self.module.heads))

    @property
    def width(self) -> int:
        """Channels of the hidden states. Quantised weights have another shape, and know it."""
        to_q: Any = self.module.to_q
        return int(getattr(to_q, "in_features", 0) or to_q.weight.shape[-1])

    def project(self, hidden: Tensor, which: str) -> Tensor:
        """Project (rows, tokens, channels) with "q", "k" or "v" and split into heads: (rows, heads, tokens, head
        channels)."""
        projected: Tensor = getattr(self.module, f"to_{which}")(hidden)
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def output(self, attended: Tensor) -> Tensor:
        """Join the heads of (rows, heads, tokens, head channels) and apply the output projection: (rows, tokens,
        channels)."""
        joined = attended.transpose(1, 2).flatten(2)
        to_out = self.module.to_out
        if isinstance(to_out, nn.ModuleList):  # diffusers: a list of linear layer and dropout
            for part in to_out:
                joined = part(joined)
        else:
            joined = cast(nn.Module, to_out)(joined)
        return joined / float(getattr(self.module, "rescale_output_factor", 1.0))


@dataclass(frozen=True)
class SelfAttention(AttentionLayer):
    """One self-attention layer: queries, keys and values are all of the hidden states."""

    def key_value_inputs(
        self, hidden: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """What keys and values are made of, both (rows, tokens, channels): `hidden`, or what another extension hands
        over in its place (token merging in Forge, as `context` and `value`).

        args, kwargs: the further arguments of the layer. None where they make it more than self-attention: a mask, a
        frame count. Forge also passes a dict of what its blocks know (`transformer_options`).
        """
        named = [*enumerate(args), *kwargs.items()]
        given = {name: value for name, value in named if value is not None and not isinstance(value, Mapping)}
        context = next((given.pop(name) for name in (0, "context", "encoder_hidden_states") if name in given), hidden)
        value = given.pop("value", context)
        if any(isinstance(other, Tensor) or other for other in given.values()):
            return None
        fits = (len(hidden), hidden.shape[-1])
        if any(not isinstance(t, Tensor) or t.ndim != 3 or (len(t), t.shape[-1]) != fits for t in (context, value)):
            return None
        return context, value


def self_attentions(unet: nn.Module) -> Sequence[SelfAttention]:
    """All self-attention layers of a UNet in the order of its modules.

    Blocks whose first attention looks at the prompt (`disable_self_attn`, `only_cross_attention`) are left out, as
    are layers with parts between projection and attention that no Stable Diffusion UNet has.
    """
    return [
        SelfAttention(f"{name}.attn1", cast(nn.Module, block.attn1))
        for name, block in transformer_blocks(unet)
        if not looks_at_prompt_only(block) and is_usual(block.attn1)
    ]


def transformer_blocks(unet: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """All transformer blocks of a UNet with their paths, in the order of its modules."""
    return [
        (name, block)
        for name, block in unet.named_modules()
        # token merging makes a subclass of the block's class, so the whole ancestry counts
        if hasattr(block, "attn1") and any(cls.__name__ == _BLOCK for cls in type(block).__mro__)
    ]


def looks_at_prompt_only(block: nn.Module) -> bool:
    """Whether the first attention of a transformer block is a cross-attention, too."""
    return bool(getattr(block, "disable_self_attn", False) or getattr(block, "only_cross_attention", False))


def is_usual(layer: object) -> bool:
    """Whether an attention layer is projections, softmax attention and an output projection, and nothing more."""
    return (
        isinstance(layer, nn.Module)
        and all(hasattr(layer, part) for part in _PARTS)
        and all(getattr(layer, part, None) is None for part in _UNUSUAL)
    )


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
