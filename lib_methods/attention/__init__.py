"""Find the attention layers of a UNet, whatever codebase it comes from, and step in between their input and output."""

from lib_methods.attention.intercept import intercept, without_overrides
from lib_methods.attention.layers import SelfAttention, self_attentions

__all__ = ["SelfAttention", "intercept", "self_attentions", "without_overrides"]
