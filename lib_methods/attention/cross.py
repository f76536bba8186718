"""The cross-attention layers of a UNet: where it looks at the prompt.

How the prompt's context reaches a layer, for all codebases: `ldm`, `sgm`, `ldm_patched` and `backend.nn`
pass `context`, by name or as the second argument; diffusers passes `encoder_hidden_states`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lib_methods.attention.intercept import Original, intercept
from lib_methods.attention.layers import AttentionLayer, is_usual, looks_at_prompt_only, transformer_blocks
from lib_methods.denoiser import Unsupported

_CONTEXT = ("context", "encoder_hidden_states")
_MASK = ("mask", "attention_mask")
_CHUNK = 77  # tokens of a prompt that CLIP embeds at a time
_FOREIGN = ("additional_tokens", "n_times_crossframe_attn_in_self")  # sgm's video models


@dataclass(frozen=True)
class CrossAttention(AttentionLayer):
    """One cross-attention layer: queries are of the hidden states, keys and values of the prompt's context."""

    def probabilities(self, hidden: Tensor, prompt: PromptInput) -> Tensor:
        """softmax(q k^T / sqrt(d)), (rows, heads, pixels, tokens), in fp32 whatever the layer runs in; fp64 stays.

        hidden: (rows, pixels, channels).
        """
        query, key = self.project(hidden, "q"), self.project(prompt.context, "k")
        wide = torch.promote_types(query.dtype, torch.float32)
        with _no_autocast(query):  # half precision overflows in SD2's layers
            scores = (query.to(wide) * query.shape[-1] ** -0.5) @ key.to(wide).transpose(-1, -2)
            if prompt.mask is not None:
                mask = prompt.mask.reshape(len(scores), 1, -1, scores.shape[-1])
                scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
            return scores.softmax(-1)

    def attend(self, probabilities: Tensor, prompt: PromptInput) -> Tensor:
        """The layer's output, (rows, pixels, channels), for probabilities (rows, heads, pixels, tokens)."""
        value = self.project(prompt.values, "v")
        return self.output(probabilities.to(value.dtype) @ value)


@dataclass(frozen=True)
class PromptInput:
    """What a cross-attention layer receives besides the hidden states.

    context: (rows, tokens, channels), what keys are made of. values: what values are made of, the same tensor but
    where another extension gives its own. mask: (rows, tokens) or (rows, 1, tokens), True or 0 where a token may be
    seen.
    """

    context: Tensor
    values: Tensor
    mask: Tensor | None = None


def cross_attentions(unet: nn.Module) -> Sequence[CrossAttention]:
    """All cross-attention layers of a UNet in the order of its modules.

    That is `attn2` of every transformer block, and `attn1` of those whose first attention looks at the prompt, too.
    Layers with parts between projection and attention that no Stable Diffusion UNet has are left out.
    """
    found = []
    for name, block in transformer_blocks(unet):
        for part in ("attn1", "attn2"):
            layer = getattr(block, part, None)
            if (part == "attn2" or looks_at_prompt_only(block)) and is_usual(layer) and not _has_extras(layer):
                found.append(CrossAttention(f"{name}.{part}", cast(nn.Module, layer)))
    return found


def _has_extras(layer: object) -> bool:
    return getattr(layer, "norm_cross", None) is not None or bool(getattr(layer, "residual_connection", False))


def prompt_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> PromptInput | None:
    """What the further arguments of a cross-attention layer say; None without a context (then the layer attends to its
    own hidden states), and for arguments that make it more than cross-attention."""
    named = next((kwargs[name] for name in _CONTEXT if kwargs.get(name) is not None), None)
    context = named if named is not None else args[0] if args else None
    is_more = any(isinstance(kwargs.get(name), Tensor) or kwargs.get(name) for name in _FOREIGN)
    if not isinstance(context, Tensor) or context.ndim != 3 or is_more:
        return None
    values = kwargs.get("value")
    mask = next((kwargs[name] for name in _MASK if kwargs.get(name) is not None), None)
    return PromptInput(context, context if values is None else values, mask)


def with_context(
    args: Sequence[Any], kwargs: Mapping[str, Any], context: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The further arguments of a layer with another context where it had one."""
    name = next((name for name in _CONTEXT if kwargs.get(name) is not None), None)
    if name is None:
        return (context, *args[1:]), dict(kwargs)
    replaced = {name: context}
    if kwargs.get("value") is kwargs[name]:
        replaced["value"] = context
    return tuple(args), {**kwargs, **replaced}


def pad_tokens(context: Tensor, tokens: int, empty: Tensor | None = None) -> Tensor:
    """A context (rows, n, channels) at `tokens` tokens, as a prompt of more 77-token chunks has them.

    empty: the embedding of the empty prompt, (1, 77, channels), which fills the chunks added. Without it the last chunk
    is repeated; a single chunk repeated changes nothing in what a layer computes. A longer context stays as it is.
    """
    missing = tokens - context.shape[1]
    if missing <= 0:
        return context
    if empty is not None:
        filler = empty.to(context).expand(len(context), -1, -1)
    else:
        filler = context[:, -_CHUNK:] if context.shape[1] % _CHUNK == 0 else context
    return torch.cat([context, *[filler] * -(-missing // filler.shape[1])], 1)[:, :tokens]


class ContextShift:
    """A replacement (see `intercept`) that adds to the context of some rows before the original runs.

    now: called at every run of the UNet; returns what to add to each of its rows, (tokens, channels), or None to leave
    a row alone. If their number is not that of the rows, the call belongs to another extension and passes unchanged.
    If the token counts differ, the shorter one is extended, see `pad_tokens`: a direction by repeating its last chunk
    (each chunk of a prompt is embedded separately), a context with `empty` if given, or else the same way.

    Works on a layer and on a transformer block, which passes its context on. Raises `Unsupported` where the direction
    is one of another kind of model.
    """

    def __init__(self, now: Callable[[], Sequence[Tensor | None]], empty: Tensor | None = None) -> None:
        self.now, self.empty = now, empty
        self._last: tuple[Tensor, tuple[Tensor | None, ...], Tensor] | None = None

    def __call__(self, original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        told = prompt_input(args, kwargs)
        if told is None:
            return original(hidden, *args, **kwargs)
        args, kwargs = with_context(args, kwargs, self.shifted(told.context))
        return original(hidden, *args, **kwargs)

    def shifted(self, context: Tensor) -> Tensor:
        """The context (rows, tokens, channels) with what is added now. All layers of a run are given the same tensor,
        so that the sum is made once."""
        shifts = tuple(self.now())
        if len(shifts) != len(context) or all(shift is None for shift in shifts):
            return context
        if self._last is not None:
            given, added, result = self._last
            if given is context and len(added) == len(shifts) and all(a is b for a, b in zip(added, shifts)):
                return result
        result = self._add(context, shifts)
        self._last = (context, shifts, result)
        return result

    def _add(self, context: Tensor, shifts: Sequence[Tensor | None]) -> Tensor:
        wanted = context.shape[-1]
        for shift in shifts:
            if shift is not None and (shift.ndim != 2 or shift.shape[-1] != wanted):
                raise Unsupported(
                    f"The edit direction was made for a model whose prompts have {shift.shape[-1]} channels; "
                    f"this model's have {wanted}. Build it again with this model."
                )
        added = [shift for shift in shifts if shift is not None]
        padded = pad_tokens(context, max(len(shift) for shift in added), self.empty)
        moved = padded.clone()
        wide = torch.promote_types(context.dtype, torch.float32)  # a direction is a small difference
        for row, shift in enumerate(shifts):
            if shift is not None:
                whole = pad_tokens(shift[None].to(context.device, wide), padded.shape[1])[0]
                moved[row] = (padded[row].to(wide) + whole).to(context.dtype)
        return moved


@contextmanager
def shifted_context(unet: nn.Module, shift: ContextShift) -> Iterator[None]:
    """Within the block, all cross-attention of the UNet sees the shifted context.

    The blocks' context is shifted, not the layers': whatever steps in at a layer, entered before or after this, sees
    it, too.
    """
    with intercept((block, shift) for _, block in transformer_blocks(unet)):
        yield


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if kind in ("cuda", "cpu") else nullcontext()
