"""Noise from seeds: one generator per image, so that an image does not depend on the batch that it is made in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from standalone.host import devices, shared

Words = npt.NDArray[np.uint32]
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_UNIT = np.float32(2.0**-32)
_TURN = np.float32(2.0**-32 * 2 * np.pi)


def _halves(word: Words, multiplier: np.uint64) -> tuple[Words, Words]:
    """The low and the high half of the product."""
    product = word.astype(np.uint64) * multiplier
    return product.astype(np.uint32), (product >> np.uint64(32)).astype(np.uint32)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Random words (4, N) for counters (4, N) and a key of two 32-bit numbers."""
    first, second, third, fourth = counter
    for number in range(_ROUNDS):
        keys = [np.uint32((word + number * step) & 0xFFFF_FFFF) for word, step in zip(key, _WEYL)]
        low_a, high_a = _halves(first, _MULTIPLIERS[0])
        low_b, high_b = _halves(third, _MULTIPLIERS[1])
        first, second, third, fourth = high_b ^ second ^ keys[0], low_b, high_a ^ fourth ^ keys[1], low_a
    return np.stack([first, second, third, fourth])


class Generator:
    """The noise of NVIDIA's GPUs on any device, from `seed`; each call of `randn` gives other numbers.

    Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"), and normal numbers from it as
    CUDA makes them. torch on CUDA counts: the first word of the counter is the number of the call, the third one the
    place in the tensor, the key is the seed; Box and Muller's transform makes the first two of the four words a normal
    number.
    """

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


Source = torch.Generator | Generator
_philox = Generator(0)


def _noise_device() -> torch.device:
    """Where torch draws random numbers; "CPU" gives the same image on every machine."""
    if shared.opts.randn_source == "CPU" or devices.device.type == "mps":
        return devices.cpu
    return devices.device


def create_generator(seed: int) -> Source:
    """A separate generator, seeded with `seed` (any integer); with the setting "NV", that of NVIDIA's GPUs."""
    if shared.opts.randn_source == "NV":
        return Generator(seed)
    return torch.Generator(_noise_device()).manual_seed(int(seed) & 0xFFFF_FFFF_FFFF_FFFF)


def manual_seed(seed: int) -> None:
    """Starts the global generator at `seed`."""
    global _philox
    if shared.opts.randn_source == "NV":
        _philox = Generator(seed)
    else:
        torch.manual_seed(int(seed))


def randn(seed: int, shape: Sequence[int], generator: Source | None = None) -> torch.Tensor:
    """Unit noise of `shape` from `generator`, or from a new one started at `seed`."""
    return randn_without_seed(shape, generator or create_generator(seed))


def randn_local(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """The first unit noise of `shape` that `seed` gives."""
    return randn(seed, shape)


def randn_like(x: torch.Tensor) -> torch.Tensor:
    """Unit noise like `x` from the global generator."""
    if shared.opts.randn_source == "NV":
        return randn_without_seed(x.shape).to(x)
    return torch.randn(x.shape, device=_noise_device(), dtype=x.dtype).to(x.device)


def randn_without_seed(shape: Sequence[int], generator: Source | None = None) -> torch.Tensor:
    """Unit noise of `shape` from `generator`, or from the global one."""
    if shared.opts.randn_source == "NV" and not isinstance(generator, torch.Generator):
        generator = generator or _philox
    if isinstance(generator, Generator):
        return torch.from_numpy(generator.randn(shape)).to(devices.device)
    return torch.randn(tuple(shape), device=_noise_device(), generator=generator).to(devices.device)


def slerp(val: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Goes from `low` (val 0) to `high` (val 1) along the sphere, for each row of dimension 1; (C, h, w) tensors."""
    unit_low = low / low.norm(dim=1, keepdim=True)
    unit_high = high / high.norm(dim=1, keepdim=True)
    cosine = (unit_low * unit_high).sum(1)
    if cosine.mean() > 0.9995:
        return low * val + high * (1 - val)
    angle = torch.acos(cosine)
    weight_low = (torch.sin((1.0 - val) * angle) / torch.sin(angle)).unsqueeze(1)
    weight_high = (torch.sin(val * angle) / torch.sin(angle)).unsqueeze(1)
    return weight_low * low + weight_high * high


def _centred(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`target` (C, H, W) with `source` (C, h, w) put into its middle, cropped where larger."""
    for axis in (1, 2):
        excess = source.shape[axis] - target.shape[axis]
        if excess > 0:
            source = source.narrow(axis, excess // 2, target.shape[axis])
    top = (target.shape[1] - source.shape[1]) // 2
    left = (target.shape[2] - source.shape[2]) // 2
    target = target.clone()
    target[:, top : top + source.shape[1], left : left + source.shape[2]] = source
    return target


class ImageRNG:
    """The noise of one batch: `next()` gives (B, *shape), image by image from its own seed.

    The first call mixes in the variation seeds (`subseeds`, by `subseed_strength` 0 to 1) and may take the noise of
    another image size (`seed_resize_from_*`, pixels); later calls give the noise that ancestral samplers ask for.
    """

    def __init__(
        self,
        shape: Sequence[int],
        seeds: Sequence[int],
        subseeds: Sequence[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize_from_h: int = 0,
        seed_resize_from_w: int = 0,
    ) -> None:
        self.shape = tuple(map(int, shape))
        self.seeds = seeds
        self.subseeds = subseeds
        self.subseed_strength = subseed_strength
        self.seed_resize_from_h = seed_resize_from_h
        self.seed_resize_from_w = seed_resize_from_w
        self.generators = [create_generator(seed) for seed in seeds]
        self.is_first = True

    def first(self) -> torch.Tensor:
        """The noise that sampling starts from."""
        resized = self.seed_resize_from_h > 0 and self.seed_resize_from_w > 0
        shape = (
            (self.shape[0], int(self.seed_resize_from_h) // 8, int(self.seed_resize_from_w) // 8)
            if resized
            else self.shape
        )
        rows: list[torch.Tensor] = []
        for index, (seed, generator) in enumerate(zip(self.seeds, self.generators)):
            noise = randn(seed, shape, generator=None if shape != self.shape else generator)
            if self.subseeds is not None and self.subseed_strength != 0:
                subseed = self.subseeds[index] if index < len(self.subseeds) else 0
                noise = slerp(self.subseed_strength, noise, randn(subseed, shape))
            if shape != self.shape:
                noise = _centred(noise, randn(seed, self.shape, generator=generator))
            rows.append(noise)
        delta = int(shared.opts.eta_noise_seed_delta or 0)
        if delta:
            self.generators = [create_generator(seed + delta) for seed in self.seeds]
        return torch.stack(rows).to(shared.device)

    def next(self) -> torch.Tensor:
        """The next noise of the batch."""
        if self.is_first:
            self.is_first = False
            return self.first()
        return torch.stack([randn_without_seed(self.shape, generator=g) for g in self.generators]).to(shared.device)
