"""Large tensors in blocks: what is computed on the way stays in the CPU's cache, and takes little of a GPU's memory.

On a CPU a copy in fp32 of a large tensor costs more than the arithmetic on it: the memory is asked of the system anew
each time. On a GPU a block is so large that starting the kernels costs nothing beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CPU_BLOCK = 2**18  # numbers: a megabyte in fp32
GPU_BLOCK = 2**22
_TOGETHER = 4  # rows: random numbers are drawn by fours, see `rounding`


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


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts of a vector one after another; the only part itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
