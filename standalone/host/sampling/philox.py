"""The noise of NVIDIA's GPUs on any device: Philox4x32-10, and normal numbers from it as CUDA makes them.

Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", gives the generator. torch on CUDA counts: the first
word of the counter is the number of the call, the third one the place in the tensor, the key is the seed; Box and
Muller's transform makes the first two of the four words a normal number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_UNIT = np.float32(2.0**-32)
_TURN = np.float32(2.0**-32 * 2 * np.pi)


def _product(word: Words, multiplier: np.uint64) -> tuple[Words, Words]:
    """The low and the high half of a 64-bit product."""
    product = word.astype(np.uint64) * multiplier
    return product.astype(np.uint32), (product >> np.uint64(32)).astype(np.uint32)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Random words (4, N) for counters (4, N) and a key of two 32-bit numbers."""
    first, second, third, fourth = counter
    for number in range(_ROUNDS):
        keys = [np.uint32((word + number * step) & 0xFFFF_FFFF) for word, step in zip(key, _WEYL)]
        low_a, high_a = _product(first, _MULTIPLIERS[0])
        low_b, high_b = _product(third, _MULTIPLIERS[1])
        first, second, third, fourth = high_b ^ second ^ keys[0], low_b, high_a ^ fourth ^ keys[1], low_a
    return np.stack([first, second, third, fourth])


class Generator:
    """Unit noise from `seed`; each call of `randn` gives other numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = int(seed) & 0xFFFF_FFFF_FFFF_FFFF
        self.offset = 0

    def randn(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """Normal numbers of `shape`."""
        count = int(np.prod(tuple(shape), dtype=np.int64))
        counter = np.zeros((4, count), dtype=np.uint32)
        counter[0] = self.offset & 0xFFFF_FFFF
        counter[2] = np.arange(count, dtype=np.uint32)
        self.offset += 1
        words = philox4x32(counter, (self.seed & 0xFFFF_FFFF, self.seed >> 32))
        radius = np.sqrt(np.float32(-2.0) * np.log(words[0] * _UNIT + _UNIT / 2))
        angle = words[1] * _TURN + _TURN / 2
        return np.asarray(radius * np.sin(angle), dtype=np.float32).reshape(tuple(shape))
