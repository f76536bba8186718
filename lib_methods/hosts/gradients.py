"""Makes a host's UNet differentiable for a while: hosts load it for sampling, not for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_FLAGS = ("checkpoint", "use_checkpoint")  # of the blocks of `ldm` and `sgm`


@contextmanager
def differentiable(unet: nn.Module) -> Iterator[None]:
    """Within the block gradients are on, out of inference mode; afterwards everything is as it was.

    The UNet's parameters are constants, so that nothing is kept for them and none collects a gradient. The blocks of
    `ldm` and `sgm` do not checkpoint by themselves: their backward pass asks for the gradients of their parameters.
    """
    flags = [
        (module, name) for module in unet.modules() for name in _FLAGS if vars(module).get(name, False) is True
    ]  # only bools: a module of that name is somebody else's
    learning = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    try:
        for module, name in flags:
            setattr(module, name, False)
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, name in flags:
            setattr(module, name, True)
        for parameter in learning:
            parameter.requires_grad_(True)
