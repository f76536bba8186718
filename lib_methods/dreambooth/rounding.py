"""Stochastic rounding to bfloat16: small steps reach weights that are too coarse for them, on average.

At a learning rate of 5e-6 a step is far smaller than the distance between two neighbouring bfloat16 numbers, so that
rounding to the nearest would lose it. Rounded up with the probability of its share of that distance, it is kept in the
mean (Gupta et al. 2015, arXiv 1502.02551).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lib_methods.dreambooth.blocks import on_cpu


class Rounding:
    """Random numbers for rounding, apart from all others: they follow from seed, step and the tensor's number only.

    So the order in which tensors are rounded does not matter, a training that goes on draws the same numbers, and so do
    several processes.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, step: int, number: int, device: torch.device) -> torch.Generator:
        """The generator for tensor `number` in step `step`. Use it at once: the next call seeds it anew."""
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
