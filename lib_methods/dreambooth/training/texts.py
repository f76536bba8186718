"""The embeddings of a training's texts: computed once, or each time while the text encoder learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib_methods.dreambooth.model.model import TextEmbedding, TrainingModel
from lib_methods.dreambooth.model.parts import CPU, Parts, device_of, release_memory
from lib_methods.dreambooth.training.weights import Trained


class TextCache:
    """The embeddings of a fixed set of texts, kept on the CPU.

    All are computed in one call, so that they have the same number of chunks and a resumed run has the very
    same numbers.
    """

    def __init__(self, model: TrainingModel, texts: Sequence[str]) -> None:
        self._rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        with torch.no_grad():
            self._embedding = model.embed(list(self._rows)).to(torch.device("cpu"), torch.float32)

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        """The embeddings of `texts`, (B, T, D), in their order. KeyError for a text that is not in the set."""
        return self._embedding[torch.tensor([self._rows[text] for text in texts])]


def embed_now(model: TrainingModel, texts: Sequence[str]) -> TextEmbedding:
    """The embeddings with gradients into the encoders; a text that comes more than once is computed once."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embedding = model.embed(list(rows))
    return embedding[torch.tensor([rows[text] for text in texts], device=embedding.hidden.device)]


class TextSource:
    """The embeddings of a training's texts at each of its steps, on the UNet's device.

    learns_until: the step from which the text encoders stand still: then all texts are embedded once, and unless it
    `stays` there, the text encoder leaves the device. one_at_a_time: the UNet leaves it while that is done.
    """

    def __init__(
        self,
        model: TrainingModel,
        texts: Sequence[str],
        trained: Trained,
        *,
        learns_until: int,
        stays: bool,
        one_at_a_time: bool = False,
    ) -> None:
        self.model, self.trained, self.learns_until, self.stays = model, trained, learns_until, stays
        self._parts = Parts(model, one_at_a_time=one_at_a_time, follow=trained.follow)
        self._all = list(texts)
        self._still: TextCache | None = None
        self._frozen: TextCache | None = None

    def embed(self, texts: Sequence[str], step: int) -> TextEmbedding:
        """The embeddings as the model reads the texts at a step; with gradients as long as the encoders learn."""
        device = device_of(self.model.unet)
        if step < self.learns_until:
            self._move(device)
            return embed_now(self.model, texts)
        if self._still is None:
            self.trained.freeze_text()
            with self._parts.embedding():
                self._still = TextCache(self.model, self._all)
            if not self.stays:
                self._move(CPU)
                release_memory(device)
        return self._still(texts).to(device, torch.float32)

    def frozen(self, texts: Sequence[str]) -> TextEmbedding:
        """The embeddings as the model without the LoRA reads the texts."""
        if self._frozen is None:
            with self._parts.embedding(), self.trained.frozen_model():
                self._frozen = TextCache(self.model, self._all)
        return self._frozen(texts).to(device_of(self.model.unet), torch.float32)

    def _move(self, device: torch.device) -> None:
        for encoder in self.model.encoders:
            encoder.to(device)
        self.trained.follow()
