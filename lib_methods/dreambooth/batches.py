"""What one pass through the model is about: latents, noise, timesteps and texts, the same each time for a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dataset import Example, TrainingData


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
    """Draws the passes of a training. `order` is its only state; all else comes from the seed and the step's number.

    prior: "images" (class pictures of the data), "model" (the photos again, told to be of the class) or "off".
    processes: of a training on several devices. Each draws the whole batch and takes its own rows, so that together
    they do what one would do with a batch of that size.
    """

    def __init__(
        self,
        data: TrainingData,
        *,
        seed: int,
        batch_size: int,
        prior: str,
        class_text: str,
        timesteps: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.data, self.seed, self.prior, self.class_text = data, seed, prior, class_text
        self.timesteps, self.rank, self.processes = timesteps, rank, processes
        self.count = batch_size * processes
        self.order = data.order(seed)
        self.masked = any(example.mask is not None for example in data.photos)

    def texts(self) -> list[str]:
        """Every text that a batch may have."""
        return list(dict.fromkeys([*(e.text for e in (*self.data.photos, *self.data.prior)), self.class_text]))

    def draw(self, step: int, part: int) -> Batch:
        """The pass number `part` of a step. Moves `order` on."""
        photos = [self.data.photos[index] for index in self.order.next_batch(self.count)]
        generator = generator_for(self.seed, step, part)
        batch = self._rows(photos, [photo.text for photo in photos], generator, is_prior=False)
        if self.prior == "off":
            return batch
        if self.prior == "model":
            same = self._rows(photos, [self.class_text] * len(photos), generator, is_prior=True)
            return _together(batch, same)
        pictures = [self.data.prior[index] for index in self.order.next_prior(photos[0].shape, self.count)]
        return _together(batch, self._rows(pictures, [p.text for p in pictures], generator, is_prior=True))

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
    mask = None if first.mask is None or second.mask is None else torch.cat([first.mask, second.mask])
    return Batch(
        latents=torch.cat([first.latents, second.latents]),
        noise=torch.cat([first.noise, second.noise]),
        timesteps=torch.cat([first.timesteps, second.timesteps]),
        is_prior=torch.cat([first.is_prior, second.is_prior]),
        mask=mask,
        sizes=torch.cat([first.sizes, second.sizes]),
        texts=[*first.texts, *second.texts],
    )
