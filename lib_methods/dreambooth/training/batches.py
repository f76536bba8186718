"""What one pass through the model is about: latents, noise, timesteps and texts with their embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_methods.dreambooth.model.model import CPU, Parts, TextEmbedding, TrainingModel, device_of, release_memory
from lib_methods.dreambooth.training.data import Example, TrainingData
from lib_methods.dreambooth.training.weights import Trained

_NOISE, _TEXT = 1, 2  # streams of their own


@dataclass(frozen=True)
class Batch:
    """The photos' rows and after them those of the class, on the CPU.

    latents, noise: (B, C, h, w). timesteps: (B,), integers. is_prior: (B,). mask: (B, 1, h, w) or None. sizes: (B, 6).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    is_prior: Tensor
    mask: Tensor | None
    sizes: Tensor
    texts: list[str]


def generator_for(seed: int, *numbers: int) -> torch.Generator:
    """A generator on the CPU for one purpose; other numbers give another stream."""
    text = " ".join(str(number) for number in (seed, *numbers))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little"))


class Batches:
    """Draws the passes of a run. `order` is its only state; all else comes from the seed and the step's number.

    prior: "images" (class images of the data), "model" (the photos again, told to be of the class) or "off".
    class_texts: what stands for each class, by the examples' group. noise_offset: each channel's noise is shifted as a
    whole by this times a normal number. caption_dropout: the share of rows whose text is empty.
    processes: of a run on several devices. Each draws the whole batch and takes its own rows, so that together
    they do what one would do with a batch of that size.
    """

    def __init__(
        self,
        data: TrainingData,
        *,
        seed: int,
        batch_size: int,
        prior: str,
        class_texts: Sequence[str],
        timesteps: int,
        noise_offset: float = 0.0,
        caption_dropout: float = 0.0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.data, self.seed, self.prior, self.class_texts = data, seed, prior, list(class_texts)
        self.noise_offset, self.caption_dropout = noise_offset, caption_dropout
        self.timesteps, self.rank, self.processes = timesteps, rank, processes
        self.count = batch_size * processes
        self.order = data.order(seed)
        self.masked = any(example.mask is not None for example in data.photos)

    def texts(self) -> list[str]:
        """Every text that a batch may have."""
        dropped = [""] if self.caption_dropout else []
        told = [example.text for example in (*self.data.photos, *self.data.prior)]
        return list(dict.fromkeys([*told, *self.class_texts, *dropped]))

    def draw(self, step: int, part: int) -> Batch:
        """The pass number `part` of a step. Moves `order` on."""
        photos = [self.data.photos[index] for index in self.order.next_batch(self.count)]
        generator = generator_for(self.seed, step, part)
        batch = self._rows(photos, [photo.text for photo in photos], generator, is_prior=False)
        if self.prior == "model":
            same = self._rows(photos, [self.class_texts[p.group] for p in photos], generator, is_prior=True)
            batch = _together(batch, same)
        elif self.prior == "images":
            indices = [index for p in photos for index in self.order.next_prior(p.shape, 1, p.group)]
            pictures = [self.data.prior[index] for index in indices]
            batch = _together(batch, self._rows(pictures, [p.text for p in pictures], generator, is_prior=True))
        return self._varied(batch, step, part)

    def _varied(self, batch: Batch, step: int, part: int) -> Batch:
        """The batch with shifted noise and without some texts. Drawn by separate generators, so that whatever is
        not asked for changes nothing."""
        mine, count = slice(self.rank, None, self.processes), len(batch.texts)
        if self.noise_offset:
            shape = (count * self.processes, batch.noise.shape[1], 1, 1)
            shift = torch.randn(shape, generator=generator_for(self.seed, step, part, _NOISE))[mine]
            batch = replace(batch, noise=batch.noise + self.noise_offset * shift)
        if self.caption_dropout:
            draws = torch.rand(count * self.processes, generator=generator_for(self.seed, step, part, _TEXT))[mine]
            kept = (draws >= self.caption_dropout).tolist()
            batch = replace(batch, texts=[text if keep else "" for text, keep in zip(batch.texts, kept)])
        return batch

    def _rows(
        self, examples: Sequence[Example], texts: Sequence[str], generator: torch.Generator, *, is_prior: bool
    ) -> Batch:
        mean, std = (torch.stack([getattr(e, name) for e in examples]).float() for name in ("mean", "std"))
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        count = len(examples)
        # one timestep from each n-th of the schedule: evenly spread, and still uniform for each row
        share = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        timesteps = (share * self.timesteps).long().clamp(max=self.timesteps - 1)
        mine = slice(self.rank, None, self.processes)
        mask = None
        if self.masked:
            ones = torch.ones(1, *mean.shape[-2:])
            masks = [ones if is_prior or e.mask is None else e.mask for e in examples]
            mask = torch.stack(masks).float()[mine]
        return Batch(
            latents=latents[mine],
            noise=noise[mine],
            timesteps=timesteps[mine],
            is_prior=torch.full((len(examples[mine]),), is_prior),
            mask=mask,
            sizes=torch.stack([e.sizes for e in examples]).float()[mine],
            texts=list(texts[mine]),
        )


def _together(first: Batch, second: Batch) -> Batch:
    names = ("latents", "noise", "timesteps", "is_prior", "sizes")
    joined = {name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names}
    mask = None if first.mask is None or second.mask is None else torch.cat([first.mask, second.mask])
    return Batch(**joined, mask=mask, texts=[*first.texts, *second.texts])


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


class TextSource:
    """The embeddings of a run's texts at each of its steps, on the UNet's device.

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
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            embedding = self.model.embed(list(rows))
            return embedding[torch.tensor([rows[text] for text in texts], device=embedding.hidden.device)]
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
