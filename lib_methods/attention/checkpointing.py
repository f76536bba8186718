"""Gradients through a UNet in little memory: blocks forget what they computed and compute it again on the way back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lib_methods.attention.intercept import Original, intercept
from lib_methods.attention.layers import transformer_blocks

_BLOCKS = frozenset({"BasicTransformerBlock", "ResBlock", "ResnetBlock2D"})
# how codebases switch on their own form: `ldm` runs blocks without gradients then, and what is seen inside has none
_SWITCHES = ("checkpoint", "use_checkpoint", "gradient_checkpointing")
# what Forge's and its forks' attention layers call, by the names in their module
_FUNCTIONS = ("attention_function", "optimized_attention", "optimized_attention_masked")

_again: ContextVar[bool] = ContextVar("_again", default=False)


def is_running_again() -> bool:
    """Whether a block is being run a second time for its gradients: what is noted inside was noted before."""
    return _again.get()


@contextmanager
def checkpointed(unet: nn.Module) -> Iterator[None]:
    """Within the block, transformer and residual blocks keep their inputs only while gradients are on.

    Gradients are the same, and must be taken within the block. The codebase's own checkpointing rests.
    """
    blocks = [m for m in unet.modules() if any(cls.__name__ in _BLOCKS for cls in type(m).__mro__)]
    with own_checkpointing_off(unet), intercept((block, _forgetful) for block in blocks):
        yield


@contextmanager
def own_checkpointing_off(unet: nn.Module) -> Iterator[None]:
    """Within the block, the codebase's own gradient checkpointing is switched off."""
    switched = [
        (module, name) for module in unet.modules() for name in _SWITCHES if module.__dict__.get(name, None) is True
    ]
    for module, name in switched:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in switched:
            setattr(module, name, True)


@contextmanager
def frozen(unet: nn.Module) -> Iterator[None]:
    """Within the block, the weights take no part in gradients, so that nothing is kept for theirs."""
    # those of a host that loads in inference mode cannot be switched on again, and are never trained
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad and not parameter.is_inference()]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def differentiable(unet: nn.Module) -> Iterator[None]:
    """Within the block gradients are on, out of inference mode; afterwards everything is as it was.

    The UNet's parameters are constants, so nothing is kept for them and none collects a gradient. The blocks of `ldm`
    and `sgm` do not checkpoint by themselves: their backward pass asks for the gradients of their parameters. The
    weights of Forge and its forks may be inference tensors, their blocks write into their own input, and some of their
    attention functions (SageAttention, FlashAttention) give no gradients.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(own_checkpointing_off(unet))
        stack.enter_context(frozen(unet))
        stack.enter_context(_plain_weights(unet))
        blocks = [block for _, block in transformer_blocks(unet)]
        if functions := _attention_functions(blocks):
            stack.enter_context(_plain_attention(functions))
            stack.enter_context(intercept((block, _on_a_copy) for block in blocks))
            for norm in (part for block in blocks for part in block.modules() if isinstance(part, nn.LayerNorm)):
                stack.callback(norm.register_forward_pre_hook(lambda _, given: (given[0].clone(),)).remove)
        yield


@contextmanager
def _plain_weights(unet: nn.Module) -> Iterator[None]:
    """Within the block, parameters that are inference tensors, which no graph may keep, are ordinary ones in the same
    memory. Quantised ones, which are more than a tensor, stay."""
    swapped = []
    try:
        for module in unet.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None and weight.is_inference() and type(weight) in (nn.Parameter, Tensor):
                    plain = torch.empty(0, dtype=weight.dtype, device=weight.device)
                    plain.set_(weight.untyped_storage(), weight.storage_offset(), weight.size(), weight.stride())
                    swapped.append((module, name, weight))
                    module._parameters[name] = nn.Parameter(plain, requires_grad=False)
        yield
    finally:
        for module, name, weight in swapped:
            module._parameters[name] = weight


def _attention_functions(blocks: Sequence[nn.Module]) -> list[tuple[dict[str, Any], str]]:
    """What the blocks' attention layers call in Forge and its forks: names in the layers' modules; none elsewhere."""
    homes = {type(layer).__module__ for block in blocks for layer in (block.attn1, block.attn2) if layer is not None}
    return [
        (vars(sys.modules[home]), name) for home in homes for name in _FUNCTIONS if hasattr(sys.modules[home], name)
    ]


@contextmanager
def _plain_attention(functions: Sequence[tuple[dict[str, Any], str]]) -> Iterator[None]:
    """Within the block, PyTorch's own function is called instead, which has gradients on every device."""
    before = [home[name] for home, name in functions]
    try:
        for home, name in functions:
            home[name] = _attend
        yield
    finally:
        for (home, name), function in zip(functions, before):
            home[name] = function


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Attention of (rows, tokens, channels), the heads side by side in the channels, as the forks' functions."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    if mask is not None:
        mask = mask.view(-1, 1, *mask.shape[-2:])
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _on_a_copy(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
    return original(hidden.clone(), *args, **kwargs)


def _forgetful(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or is_running_again():
        return original(hidden, *args, **kwargs)
    # some codebases keep writing to the options they pass to a block
    kept = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}

    was_run = False

    def run(hidden: Tensor, *args: Any) -> Any:
        nonlocal was_run
        first, was_run = not was_run, True
        with nullcontext() if first else _running_again():
            return original(hidden, *args, **kept)

    # with its random numbers: the forks' token merging draws some
    return checkpoint(run, hidden, *args, use_reentrant=False, preserve_rng_state=True)


@contextmanager
def _running_again() -> Iterator[None]:
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)
