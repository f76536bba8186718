"""Find the attention layers of a UNet, whatever codebase it comes from, and step in between their input and output."""

from lib_methods.attention.checkpointing import (
    checkpointed,
    differentiable,
    frozen,
    is_running_again,
    own_checkpointing_off,
)
from lib_methods.attention.cross import (
    ContextShift,
    CrossAttention,
    PromptInput,
    cross_attentions,
    pad_tokens,
    prompt_input,
    shifted_context,
    with_context,
)
from lib_methods.attention.intercept import intercept, without_overrides
from lib_methods.attention.layers import AttentionLayer, SelfAttention, self_attentions, transformer_blocks

__all__ = [
    "AttentionLayer",
    "ContextShift",
    "CrossAttention",
    "PromptInput",
    "SelfAttention",
    "checkpointed",
    "cross_attentions",
    "differentiable",
    "frozen",
    "intercept",
    "is_running_again",
    "own_checkpointing_off",
    "pad_tokens",
    "prompt_input",
    "self_attentions",
    "shifted_context",
    "transformer_blocks",
    "with_context",
    "without_overrides",
]
