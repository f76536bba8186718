"""One optimizer for small convolutional networks: Muon for the matrices, Adam for everything else.

Muon (Jordan et al. 2024; `torch.optim.Muon`) needs about half of Adam's steps here. It takes matrices only, so
convolutions are shown to it flattened to (out, in * kernel), as views on the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MatrixOptimizer:
    """Muon on `matrices` and Adam on the `rest` of some modules' parameters.

    Parameters whose name holds one of `EDGES` (first and last layers, embeddings) go to Adam, whose steps suit them
    better.
    """

    EDGES = ("conv_in", "conv_out", "quant_conv", "embedding", "time_emb_proj")

    def __init__(self, modules: Iterable[nn.Module], matrix_rate: float, rest_rate: float) -> None:
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.matrices = [p for name, p in named if p.ndim >= 2 and not any(edge in name for edge in self.EDGES)]
        held = {id(p) for p in self.matrices}
        self.flat: list[Tensor] = [p.detach().view(p.shape[0], -1) for p in self.matrices]
        self.muon = torch.optim.Muon(self.flat, lr=matrix_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        rest = [p for p in self.parameters if id(p) not in held]
        self.adam = torch.optim.Adam(rest, lr=rest_rate, betas=(0.9, 0.99), fused=True)
        self.rates = (matrix_rate, rest_rate)

    def step(self, share: float = 1.0) -> None:
        """One step at `share` of the full learning rates; clears the gradients."""
        for view, parameter in zip(self.flat, self.matrices):
            view.grad = None if parameter.grad is None else parameter.grad.view_as(view)
        for part, rate in zip((self.muon, self.adam), self.rates):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
