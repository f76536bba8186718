"""Caches inversions, finished or not, from one job to the next within a memory limit."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from lib_methods.pix2pix_zero.inversion import Trajectory


class InversionKey(NamedTuple):
    """All that the inversion of a picture depends on.

    picture: hash of the picture or of its latents, see `tensor_hash`. model: checkpoint, VAE and LoRAs with their
    strengths. caption: as the model is told it. sigmas: the sampler's levels as bytes, see `inversion_key`.
    size: (height, width) of the latents. settings: `InversionSettings` or `AncestralSettings`.
    """

    picture: str
    model: Hashable
    caption: str
    sigmas: bytes
    size: tuple[int, int]
    settings: Hashable


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values, in hexadecimal digits; the device does not count."""
    plain = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def inversion_key(picture: Tensor, model: Hashable, caption: str, sigmas: Tensor, settings: Hashable) -> InversionKey:
    """The key of an inversion. picture: the latents (batch, 4, h, w) that it starts from."""
    levels = sigmas.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    size = (int(picture.shape[-2]), int(picture.shape[-1]))
    return InversionKey(tensor_hash(picture), model, caption, levels, size, settings)


class InversionCache:
    """Inversions by key, the least recently used given up first. Held in main memory. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[InversionKey, Trajectory] = OrderedDict()

    def get(self, key: InversionKey) -> Trajectory | None:
        """What is kept under the key, on the CPU and perhaps partial, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: InversionKey, inverted: Trajectory, limit: int) -> bool:
        """Keep an inversion if it fits into `limit` bytes, in place of older ones; says whether it was kept."""
        held = inverted.to("cpu")
        with self._lock:
            self._kept.pop(key, None)
            fits = held.size <= limit
            if fits:
                self._kept[key] = held
            while self._size() > limit:
                self._kept.popitem(last=False)
            return fits

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()

    @property
    def size(self) -> int:
        """Bytes held."""
        with self._lock:
            return self._size()

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    def _size(self) -> int:
        return sum(inverted.size for inverted in self._kept.values())
