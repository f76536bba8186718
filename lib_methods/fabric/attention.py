"""Attention over own tokens and weighted reference tokens, in memory linear in the number of tokens.

FABRIC (arXiv 2307.10159, section 3.2) lets each query see its own tokens with weight 1 and reference tokens j with
weight w_j:

    A_j = w_j exp(s_j) / sum_k w_k exp(s_k),   s_j = q k_j / sqrt(d)

Both parts are computed on their own and merged by their log-sum-exp, which is exact and needs no bias tensor:

    share = sigmoid(lse_ref + log w - lse_own),   out = (1 - share) own + share ref
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lib_methods.guidance import TINY

_CHUNK_ELEMENTS = 1 << 24  # scores held at a time by the plain form: 64 MiB in fp32


def attention_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exp of its scaled scores.

    Shapes: query (B, H, T, d), key and value (B, H, S, d); returns (B, H, T, d) in the query's dtype and (B, H, T) in
    fp32. Runs on the device's fused kernel where it returns the log-sum-exp, in chunks of queries elsewhere.
    """
    if not torch.is_grad_enabled() or not (query.requires_grad or key.requires_grad or value.requires_grad):
        fused = _fused(query, key, value)
        if fused is not None:
            return fused
    return _chunked(query, key, value)


def _fused(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    aten = torch.ops.aten
    kind, tokens = query.device.type, query.shape[2]
    try:
        if kind == "cpu" and hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu"):
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[:2]
            return out, lse
        if kind == "cuda" and query.shape[-1] % 8 == 0:
            if query.dtype in (torch.float16, torch.bfloat16) and torch.cuda.get_device_capability(query.device) >= (
                8,
                0,
            ):
                out, lse = aten._scaled_dot_product_flash_attention(query, key, value)[:2]
            else:
                out, lse = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
            return out, lse[..., :tokens].float()  # some kernels pad the log-sum-exp
    except (RuntimeError, TypeError, IndexError):  # this build's kernel does not take these shapes or arguments
        return None
    return None


def _chunked(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, channels = query.shape
    size = max(1, _CHUNK_ELEMENTS // max(1, batch * heads * key.shape[2]))
    keys = key.transpose(-1, -2).float()
    outs, sums = [], []
    for part in query.split(size, dim=2):
        scores = (part.float() * channels**-0.5) @ keys
        lse = scores.logsumexp(-1)
        outs.append(((scores - lse[..., None]).exp() @ value.float()).to(query.dtype))
        sums.append(lse)
    return torch.cat(outs, 2), torch.cat(sums, 2)


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, log_weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Attention over N reference images that all rows share, with the weights in the log-sum-exp.

    Shapes: query (B, H, T, d), key and value (N, H, S, d), one log weight per image. Rows are laid out as more
    queries of one row, so that keys and values are not repeated for the batch; images of equal weight go through one
    kernel call.
    """
    batch, heads, tokens, channels = query.shape
    folded = query.transpose(0, 1).reshape(1, heads, batch * tokens, channels)
    merged: tuple[Tensor, Tensor] | None = None
    for weight in sorted(set(log_weights)):
        chosen = [i for i, w in enumerate(log_weights) if w == weight]
        # (N, H, S, d) to (1, H, N S, d)
        keys, values = (
            (t if len(chosen) == len(t) else t[chosen]).transpose(0, 1).flatten(1, 2)[None] for t in (key, value)
        )
        out, lse = attention_with_lse(folded, keys, values)
        merged = (out, lse + weight) if merged is None else merge(*merged, out, lse + weight)
    if merged is None:
        raise ValueError("no reference images")
    out, lse = merged
    return (
        out.reshape(heads, batch, tokens, channels).transpose(0, 1),
        lse.reshape(heads, batch, tokens).transpose(0, 1),
    )


def align(tokens: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """AdaIN, as StyleAligned (arXiv 2312.02133, section 4.2) uses it on queries and keys: tokens (B, H, T, d) with the
    mean and the spread, (1 or B, H, 1, d), of a reference."""
    own_mean, own_spread = statistics(tokens)
    aligned = (tokens.float() - own_mean) / own_spread.clamp(min=TINY) * spread + mean
    return aligned.to(tokens.dtype)


def statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the tokens of (B, H, T, d), both (B, H, 1, d) in fp32."""
    wide = tokens.float()
    return wide.mean(2, keepdim=True), wide.std(2, correction=0, keepdim=True)


def merge(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge attention over two sets of keys into attention over both: outputs (B, H, T, d), log-sum-exps (B, H, T)."""
    share = torch.sigmoid(second_lse - first_lse)[..., None].to(first.dtype)
    return torch.lerp(first, second, share), torch.logaddexp(first_lse, second_lse)


def pool_tokens(hidden: Tensor, height: int, width: int) -> Tensor:
    """Average tokens of shape (N, height * width, C) over squares of 2x2; sizes that are odd keep their last row or
    column.

    The caller adds the log of the pooled count to the score (`token_log_weight`), so that the strength stays what it
    was.
    """
    grid = hidden.transpose(1, 2).unflatten(2, (height, width))
    pooled = torch.nn.functional.avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def log_weights(
    weights: Sequence[float],
    strength: float,
    *,
    shared: bool,
    own_tokens: int,
    stored_tokens: int,
    full_tokens: int,
) -> list[float]:
    """The log of the weight of one stored token of each image, as `reference_attention` takes it.

    As published, a token of a reference weighs `strength` times the image's weight. Shared, all images together have
    the budget of one: with equal scores they take strength / (1 + strength) of the attention, whatever their number
    and size.

    weights: of the images. own_tokens: tokens of the layer in the running pass. full_tokens: tokens of the reference at
    full detail, stored_tokens: what is left of them after pooling. One stored token stands for full_tokens /
    stored_tokens.
    Images of weight 0 get -inf and are not counted.
    """
    counted = sum(1 for weight in weights if weight > 0)
    budget = own_tokens / (stored_tokens * counted) if shared and counted else full_tokens / stored_tokens
    if strength <= 0:
        return [-math.inf] * len(weights)
    # a sum of logs: the product of very small weights would be rounded to 0
    return [math.log(strength) + math.log(w) + math.log(budget) if w > 0 else -math.inf for w in weights]
