"""Large tensors in blocks: what is computed on the way stays in the CPU's cache, and takes little of a GPU's memory.

On a CPU a copy in fp32 of a large tensor costs more than the arithmetic on it: the memory is asked of the system anew
each time. On a GPU a block is so large that starting the kernels costs nothing beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CPU_BLOCK = 2**18  # numbers: a megabyte in fp32
GPU_BLOCK = 2**22
_TOGETHER = 4  # rows: random numbers are drawn by fours, see `rounding`


def block_size(device: torch.device) -> int:
    """How many numbers are worked on at once."""
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def row_blocks(matrix: Tensor) -> list[slice]:
    """The rows of `matrix` (R, C) in blocks, of at least four rows each. They follow from shape and kind of device."""
    rows, columns = matrix.shape
    height = max(block_size(matrix.device) // max(columns, 1) // _TOGETHER, 1) * _TOGETHER
    return [slice(top, min(top + height, rows)) for top in range(0, rows, height)]


def norm_of(tensor: Tensor) -> Tensor:
    """The norm over all numbers, a scalar in fp32."""
    if tensor.device.type != "cpu" or tensor.numel() <= CPU_BLOCK:
        return torch.linalg.vector_norm(tensor, dtype=torch.float32)
    pieces = tensor.reshape(-1).split(CPU_BLOCK)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p, dtype=torch.float32) for p in pieces]))
