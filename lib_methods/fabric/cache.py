"""Keep reference features from one denoiser call, job and Generate click to the next, within a limit of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What the self-attention layers of the UNet saw of a group of reference images at one noise level.

    hidden: by layer name, the layer's input, shape (images, stored tokens, channels).
    full_tokens: by layer name, the tokens before pooling.
    """

    hidden: dict[str, Tensor]
    full_tokens: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in self.hidden.values())


class FeatureCache:
    """Features by (group of images, noise level), where a group stands for images, size, seed and detail.

    A job walks through its noise levels in order, again and again. Dropping the least recently used entry would then
    drop each one just before it is needed, so a full cache gives up what other groups left and, when nothing of
    theirs is left, keeps what it has. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Hashable = None
        self._groups: OrderedDict[Hashable, dict[Hashable, Features]] = OrderedDict()
        self._latents: OrderedDict[Hashable, Tensor] = OrderedDict()

    def use_model(self, key: Hashable) -> None:
        """Forget everything if another checkpoint was loaded since the last call."""
        with self._lock:
            if key != self._model:
                self._model = key
                self._groups.clear()
                self._latents.clear()

    def get(self, group: Hashable, level: Hashable) -> Features | None:
        """The features, or None."""
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group].get(level)
            return None

    def put(self, group: Hashable, level: Hashable, features: Features, limit: int) -> bool:
        """Keep the features if `limit` bytes allow it, and say whether they were kept."""
        with self._lock:
            while self._size() + features.size > limit and any(other != group for other in self._groups):
                oldest = next(other for other in self._groups if other != group)
                entries = self._groups[oldest]
                entries.popitem()
                if not entries:
                    del self._groups[oldest]
            if self._size() + features.size > limit:
                return False
            self._groups.setdefault(group, {})[level] = features
            self._groups.move_to_end(group)
            return True

    def get_latent(self, key: Hashable) -> Tensor | None:
        """An encoded feedback image, or None."""
        with self._lock:
            return self._latents.get(key)

    def put_latent(self, key: Hashable, latent: Tensor) -> None:
        """Keep an encoded feedback image; the 256 newest stay (64 KiB each at 512x512)."""
        with self._lock:
            self._latents[key] = latent
            while len(self._latents) > 256:
                self._latents.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._groups.clear()
            self._latents.clear()

    @property
    def size(self) -> int:
        """Bytes of features held."""
        with self._lock:
            return self._size()

    def _size(self) -> int:
        return sum(f.size for entries in self._groups.values() for f in entries.values())
