"""Adafactor with a given learning rate: next to no state, and weights in bfloat16 (Shazeer and Stern 2018).

arXiv 1804.04235, algorithms 4 and 5 without relative steps and without first moments. The second moments of a matrix
are kept as the means of its rows and columns; a convolution's kernel counts as a matrix of outputs by inputs times
kernel, so that it needs as little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU_BLOCK = 2**18  # numbers: a megabyte in fp32
GPU_BLOCK = 2**22
_TOGETHER = 4  # rows: random numbers are drawn by fours, see `_noise`


def on_cpu(device: torch.device) -> bool:
    """Whether what was computed just now is in a cache, and random numbers are drawn one after another."""
    return device.type == "cpu"


def row_blocks(matrix: Tensor) -> list[slice]:
    """The rows of `matrix` (R, C) in blocks, of at least four rows each. They follow from shape and kind of device."""
    rows, columns = matrix.shape
    height = max((CPU_BLOCK if on_cpu(matrix.device) else GPU_BLOCK) // max(columns, 1) // _TOGETHER, 1) * _TOGETHER
    return [slice(top, min(top + height, rows)) for top in range(0, rows, height)]


def norm_of(tensor: Tensor) -> Tensor:
    """The norm over all numbers, a scalar in fp32."""
    if not on_cpu(tensor.device) or tensor.numel() <= CPU_BLOCK:
        return torch.linalg.vector_norm(tensor, dtype=torch.float32)
    pieces = tensor.reshape(-1).split(CPU_BLOCK)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p, dtype=torch.float32) for p in pieces]))


def square_sums(block: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of squares of a matrix' rows, (R,), and of its columns, (C,), in fp32."""
    if on_cpu(block.device):
        squares = block.to(torch.float32, copy=True).square_()
        return squares.sum(1), squares.sum(0)
    # a GPU reads the numbers as they are and keeps nothing in between
    rows, columns = (torch.linalg.vector_norm(block, dim=way, dtype=torch.float32) for way in (1, 0))
    return rows.square_(), columns.square_()


class Rounding:
    """Random numbers for rounding, apart from all others: they follow from seed, step and the tensor's number only.

    So the order in which tensors are rounded does not matter, a resumed run draws the same numbers, and so do
    several processes.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, step: int, number: int, device: torch.device) -> torch.Generator:
        """The generator for tensor `number` in step `step`. Use it at once: the next call seeds it again."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        text = f"{self.seed} {step} {number}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        return self._generators[device].manual_seed(seed)


def round_into(weights: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Write fp32 `values` into bfloat16 `weights`, each rounded up or down at random so that its mean is exact.

    Values that are bfloat16 numbers already stay as they are; infinities and NaN, too.
    """
    # bfloat16 is the upper half of an fp32: a random lower half carries over with the right probability
    bits = values.float().contiguous().view(torch.int32)
    noise = _noise(values, generator)
    # infinities have a lower half of zeros; of the NaNs of arithmetic some have ones only, which must not carry over
    noise.add_(bits.clamp(max=0x7FFF0000)).bitwise_and_(-65536)
    weights.copy_(noise.view(torch.float32))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random whole numbers below 2**16 in the shape of `like`, int32."""
    if not on_cpu(like.device):
        return torch.randint(0, 1 << 16, like.shape, dtype=torch.int32, device=like.device, generator=generator)
    # a CPU draws one number after another: one of 64 bits makes four, at a third of the time
    drawn = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[: like.numel()].view(like.shape).to(torch.int32).bitwise_and_(0xFFFF)


_SMALLEST = 1e-30
_DECAY = 0.8


class Adafactor(torch.optim.Optimizer):
    """One step: the gradient over the root of its mean square, the whole update's RMS at most 1, times `lr`.

    Weights in bfloat16 are rounded stochastically. first_number: of the generators that the weights draw from, one
    each. The state is kept in fp32: `row` and `column`, or `square` for vectors; and `steps`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        rounding: Rounding | None = None,
        first_number: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.rounding = rounding or Rounding(0)
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._numbers = {p: first_number + place for place, p in enumerate(parameters)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._move(weights, weights.grad, group)

    def _move(self, weights: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weights]
        if not state:
            _start(state, weights)
        state["steps"] += 1
        generator = None
        if weights.dtype == torch.bfloat16:
            generator = self.rounding.generator(state["steps"], self._numbers[weights], weights.device)
        if weights.ndim < 2:
            vector = gradient.float()
            state["square"].lerp_(vector.square().add_(_SMALLEST), state["steps"] ** -_DECAY)
            update = state["square"].rsqrt().mul_(vector)
            _add(weights, update, _bound(torch.dot(update, update), update.numel()).rsqrt_(), group, generator)
            return
        matrix, moved = (values.reshape(len(weights), -1) for values in (gradient, weights))
        factors = _factors(matrix, state)
        for block in factors.blocks:
            update = matrix[block] * factors.by_column if factors.whole is None else factors.whole
            _add(moved[block], update, factors.by_row[block], group, generator)
        if not weights.is_contiguous():  # of another memory format: `moved` is a copy
            weights.copy_(moved.view(weights.shape))


class _Factors(NamedTuple):
    """What a matrix of gradients is multiplied by: (R, 1), the bound of the RMS in it, and (C,)."""

    by_row: Tensor
    by_column: Tensor
    blocks: list[slice]
    whole: Tensor | None  # the only block, multiplied by columns


def _start(state: dict[str, Any], weights: Tensor) -> None:
    state["steps"] = 0
    if weights.ndim < 2:
        state["square"] = torch.zeros_like(weights, dtype=torch.float32)
        return
    rows, columns = weights.shape[0], weights.numel() // weights.shape[0]
    state["row"] = torch.zeros(rows, device=weights.device)
    state["column"] = torch.zeros(columns, device=weights.device)


def _factors(gradient: Tensor, state: dict[str, Any]) -> _Factors:
    """The running means move on. Of several blocks none is kept: for the RMS they are gone through once more."""
    row, column = state["row"], state["column"]
    new = state["steps"] ** -_DECAY  # 1 - beta2, 1 in the first step
    blocks = row_blocks(gradient)
    sums = [square_sums(gradient[block]) for block in blocks]
    by_row, by_column = torch.cat([rows for rows, _ in sums]), sums[0][1]
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
    squares = torch.dot(torch.cat(norms).square_(), by_row)
    by_row.div_(_bound(squares, gradient.numel())).sqrt_()
    return _Factors(by_row.unsqueeze(1), by_column, blocks, update if len(blocks) == 1 else None)


def _bound(squares: Tensor, count: int) -> Tensor:
    """What the update's `squares` are divided by, so that its RMS is at most 1."""
    return squares.div_(float(count)).clamp_(min=1.0)


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
