"""Adafactor with a given learning rate: next to no state, and weights in bfloat16 (Shazeer and Stern 2018).

arXiv 1804.04235, algorithms 4 and 5 without relative steps and without first moments. The second moments of a matrix
are kept as the means of its rows and columns; a convolution's kernel counts as a matrix of outputs by inputs times
kernel, so that it needs as little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_methods.dreambooth.blocks import joined, row_blocks, square_sums
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
        generator = None
        if weights.dtype == torch.bfloat16:
            generator = self.rounding.generator(state["steps"], self._numbers[weights], weights.device)
        if weights.ndim < 2:
            update = _normalised(gradient.float(), state)
            _add(weights, update, _bound(torch.dot(update, update), update.numel(), group).rsqrt_(), group, generator)
            return
        matrix, moved = (values.reshape(len(weights), -1) for values in (gradient, weights))
        factors = _factors(matrix, state, group)
        for block in factors.blocks:
            _add(moved[block], factors.update(matrix, block), factors.by_row[block], group, generator)
        if not weights.is_contiguous():  # of another memory format: `moved` is a copy
            weights.copy_(moved.view(weights.shape))


class _Factors(NamedTuple):
    """What a matrix of gradients is multiplied by: (R, 1), the bound of the RMS in it, and (C,)."""

    by_row: Tensor
    by_column: Tensor
    blocks: list[slice]
    whole: Tensor | None  # the only block, multiplied by columns

    def update(self, matrix: Tensor, block: slice) -> Tensor:
        """A block multiplied by columns, fp32."""
        return matrix[block] * self.by_column if self.whole is None else self.whole


def _start(state: dict[str, Any], weights: Tensor) -> None:
    state["steps"] = 0
    if weights.ndim < 2:
        state["square"] = torch.zeros_like(weights, dtype=torch.float32)
        return
    rows, columns = weights.shape[0], weights.numel() // weights.shape[0]
    state["row"] = torch.zeros(rows, device=weights.device)
    state["column"] = torch.zeros(columns, device=weights.device)


def _normalised(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """A vector's gradient over the root of its running mean square, which moves on."""
    state["square"].lerp_(gradient.square().add_(_SMALLEST), state["steps"] ** -_DECAY)
    return state["square"].rsqrt().mul_(gradient)


def _factors(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> _Factors:
    """The running means move on. Of several blocks none is kept: for the RMS they are gone through once more."""
    row, column = state["row"], state["column"]
    new = state["steps"] ** -_DECAY  # 1 - beta2, 1 in the first step
    blocks = row_blocks(gradient)
    sums = [square_sums(gradient[block]) for block in blocks]
    by_row, by_column = joined([rows for rows, _ in sums]), sums[0][1]
    for _, columns in sums[1:]:
        by_column.add_(columns)
    row.lerp_(by_row.div_(len(column)).add_(_SMALLEST), new)
    column.lerp_(by_column.div_(len(row)).add_(_SMALLEST), new)
    torch.rsqrt(column, out=by_column)
    norms = []
    for block in blocks:
        update = gradient[block] * by_column
        norms.append(torch.linalg.vector_norm(update, dim=1))
    torch.div(row.mean(), row, out=by_row)
    squares = torch.dot(joined(norms).square_(), by_row)
    by_row.div_(_bound(squares, gradient.numel(), group)).sqrt_()
    return _Factors(by_row.unsqueeze(1), by_column, blocks, update if len(blocks) == 1 else None)


def _bound(squares: Tensor, count: int, group: dict[str, Any]) -> Tensor:
    """What the update's `squares` are divided by, so that its RMS is at most the threshold."""
    return squares.div_(count * group["threshold"] ** 2).clamp_(min=1.0)


def _add(
    weights: Tensor, update: Tensor, factor: Tensor, group: dict[str, Any], generator: torch.Generator | None
) -> None:
    """Move `weights` against factor * update, fp32, and towards zero; rounded at random where there is a generator."""
    if group["weight_decay"]:
        # first, to the small number: taken from the weights by itself it would be lost in fp32
        update.addcdiv_(weights, factor, value=group["weight_decay"])
    if generator is None:
        weights.addcmul_(update, factor, value=-group["lr"])
    else:
        round_into(weights, torch.addcmul(weights, update, factor, value=-group["lr"]), generator)
