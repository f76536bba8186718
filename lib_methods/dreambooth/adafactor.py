"""Adafactor with a given learning rate: next to no state, and weights in bfloat16 (Shazeer and Stern 2018).

arXiv 1804.04235, algorithms 4 and 5 without relative steps and without first moments. The second moments of a matrix
are kept as the means of its rows and columns; a convolution's kernel counts as a matrix of outputs by inputs times
kernel, so that it needs as little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lib_methods.dreambooth.rounding import Rounding, round_into

_SMALLEST = 1e-30
_DECAY = 0.8


class Adafactor(torch.optim.Optimizer):
    """One step: the gradient over the root of its mean square, the whole update's RMS at most `threshold`, times `lr`.

    Weights in bfloat16 are rounded stochastically. numbers: which generator each weight draws from, as they come where
    not given. The state is kept in fp32: `row` and `column`, or `square` for vectors; and `steps`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        threshold: float = 1.0,
        rounding: Rounding | None = None,
        first_number: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "threshold": threshold})
        self.rounding = rounding or Rounding(0)
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._numbers = {p: first_number + place for place, p in enumerate(parameters)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._move(weights, weights.grad, group)
        return loss

    def _move(self, weights: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weights]
        if not state:
            _start(state, weights)
        state["steps"] += 1
        update = _normalised(gradient.float(), state)
        # on a GPU small tensors cost by the number of operations: the factors are put together first
        rms = torch.linalg.vector_norm(update) / (update.numel() ** 0.5 * group["threshold"])
        update.mul_(-group["lr"] / rms.clamp_(min=1.0))
        if group["weight_decay"]:
            update.add_(weights, alpha=-group["lr"] * group["weight_decay"])
        if weights.dtype == torch.bfloat16:
            generator = self.rounding.generator(state["steps"], self._numbers[weights], weights.device)
            round_into(weights, update.add_(weights), generator)
        else:
            weights.add_(update)


def _start(state: dict[str, Any], weights: Tensor) -> None:
    state["steps"] = 0
    if weights.ndim < 2:
        state["square"] = torch.zeros_like(weights, dtype=torch.float32)
        return
    rows, columns = weights.shape[0], weights.numel() // weights.shape[0]
    state["row"] = torch.zeros(rows, device=weights.device)
    state["column"] = torch.zeros(columns, device=weights.device)


def _normalised(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient over the root of its running mean square; the running means move on."""
    new = state["steps"] ** -_DECAY  # 1 - beta2, 1 in the first step
    squares = gradient.square()
    if "square" in state:
        state["square"].lerp_(squares.add_(_SMALLEST), new)
        return state["square"].rsqrt().mul_(gradient)
    squares = squares.view(len(state["row"]), -1)
    row, column = state["row"], state["column"]
    row.lerp_(squares.mean(1).add_(_SMALLEST), new)
    column.lerp_(squares.mean(0).add_(_SMALLEST), new)
    del squares
    matrix = gradient.reshape(len(row), -1) * (row.mean() / row).sqrt_().unsqueeze(1)
    return matrix.mul_(column.rsqrt()).view(gradient.shape)
