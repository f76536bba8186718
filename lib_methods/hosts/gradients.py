"""Makes a host's UNet differentiable for a while: hosts load it for sampling, not for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib_methods.attention import frozen, own_checkpointing_off


@contextmanager
def differentiable(unet: nn.Module) -> Iterator[None]:
    """Within the block gradients are on, out of inference mode; afterwards everything is as it was.

    The UNet's parameters are constants, so that nothing is kept for them and none collects a gradient. The blocks of
    `ldm` and `sgm` do not checkpoint by themselves: their backward pass asks for the gradients of their parameters.
    """
    with own_checkpointing_off(unet), frozen(unet), torch.inference_mode(False), torch.enable_grad():
        yield
