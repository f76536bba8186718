"""Training data and its order: photos and class images as latents, in batches with their noise, timesteps and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.errors import UserError

Shape = tuple[int, int]
"""(height, width) of latents."""
Member = tuple[int, int]
"""An example's index, and which of its repeats it is."""

_NOISE, _TEXT, _CONDITION = 1, 2, 3  # separate random streams
_ANOTHER = "The saved run used other photos, class images or another resolution, so it cannot be resumed."


@dataclass(frozen=True)
class Example:
    """An image as the trainer needs it, all on the CPU in fp32.

    mean, std: of the latents, (C, h, w), scaled for the UNet. mask: (1, h, w) in [0, 1], white on the subject, or None.
    sizes: (6,), SDXL's micro-conditioning. text: the caption. origin: identifies the source of latents and mask; "" if
    unknown. group: the number of its class. repeats: times per epoch.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor | None
    sizes: Tensor
    text: str
    origin: str = ""
    group: int = 0
    repeats: int = 1

    @property
    def shape(self) -> Shape:
        """(height, width) of the latents."""
        return int(self.mean.shape[-2]), int(self.mean.shape[-1])


@dataclass(frozen=True)
class TrainingData:
    """The subject's examples and those of the class. Every photo's shape has class images, where there are any."""

    photos: Sequence[Example]
    prior: Sequence[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.photos:
            raise UserError("There are no photos to train on.")
        missing = {(photo.shape, photo.group) for photo in self.photos} - {(p.shape, p.group) for p in self.prior}
        if self.prior and missing:
            raise UserError("Class images are missing for some of the photos' sizes.")

    def fingerprint(self, *, bits: bool = False) -> str:
        """SHA-256 of all that is in the data, as 64 hex digits: the same for the same photos, texts and sizes.

        Latents count by their origin, as an image generated or encoded again may differ in its last bits.
        bits: they count as they are, as in states of older versions.
        """
        digest = hashlib.sha256()
        for kind, examples in (("photos", self.photos), ("prior", self.prior)):
            digest.update(f"{kind} {len(examples)};".encode())
            for example in examples:
                _digest_example(digest, example, bits or not example.origin)
        return digest.hexdigest()


class Order:
    """A stream of batches that is the same for the same shapes and seed, and continues from a saved place bit-exactly.

    All examples of a batch have the same shape. Each shape has its own epochs: its examples are shuffled, each comes
    once (or as often as it repeats), and the next epoch may begin in the middle of a batch. The next shape is the one
    used least for its number of examples, so over time all photos are used equally often.

    Hashes, not a random generator, decide the order, so it is the same in every version of Python and torch.

    Several processes each take their own part of a batch: `next_batch(size * processes)[rank::processes]`.
    """

    def __init__(self, data: TrainingData, seed: int = 0) -> None:
        self._seed = seed
        self._photos: dict[Shape, list[Member]] = {}
        for shape, members in _by_shape(data.photos).items():
            self._photos[shape] = [(i, copy) for i in members for copy in range(data.photos[i].repeats)]
        groups = sorted({example.group for example in data.prior})
        self._prior: dict[tuple[Shape, int], list[Member]] = {}
        for group in groups:
            for shape, members in _by_shape(data.prior, group).items():
                self._prior[shape, group] = [(index, 0) for index in members]
        self._served = dict.fromkeys(self._photos, 0)
        self._prior_served = dict.fromkeys(self._prior, 0)

    def next_batch(self, batch_size: int) -> list[int]:
        """The indices of the next photos, all of one shape. There may be fewer photos of it than `batch_size`: then
        some come more than once."""
        if batch_size < 1:
            raise ValueError("a batch has at least one photo")
        rounds = sum(self._served.values())
        shape = min(self._photos, key=lambda key: (self._share(key), self._rank("shape", rounds, *key)))
        indices = self._take("photo", self._photos[shape], shape, self._served[shape], batch_size)
        self._served[shape] += batch_size
        return indices

    def next_prior(self, shape: Shape, n: int, group: int = 0) -> list[int]:
        """The indices of the next `n` class images of a shape and class, chosen in the same way.

        Raises `UserError` if there are none.
        """
        key = shape, group
        if key not in self._prior:
            raise UserError("There are no class images of the photos' size.")
        indices = self._take("prior", self._prior[key], shape, self._prior_served[key], n)
        self._prior_served[key] += n
        return indices

    def state(self) -> dict[str, int]:
        """The place in the stream, for `restore`."""
        counts = {f"photos {height}x{width}": count for (height, width), count in self._served.items()}
        counts.update({_prior_name(key): count for key, count in self._prior_served.items()})
        return {"seed": self._seed, **counts}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken. Raises `UserError`, changing nothing, where it is of other data."""
        if set(state) != set(self.state()) or state["seed"] != self._seed:
            raise UserError(_ANOTHER)
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in state.values()):
            raise UserError("The saved run is damaged: its position in the data is not a number.")
        self._served = {shape: state[f"photos {shape[0]}x{shape[1]}"] for shape in self._photos}
        self._prior_served = {key: state[_prior_name(key)] for key in self._prior}

    def _share(self, shape: Shape) -> Fraction:
        return Fraction(self._served[shape], len(self._photos[shape]))

    def _take(self, kind: str, members: Sequence[Member], shape: Shape, served: int, count: int) -> list[int]:
        """`count` members from place `served` of their endless stream of epochs on."""
        taken: list[int] = []
        while len(taken) < count:
            epoch, place = divmod(served + len(taken), len(members))
            # the first copy is ranked as it was before there were more
            order = sorted(members, key=lambda member: self._rank(kind, epoch, *shape, *member[: 1 + bool(member[1])]))
            taken += [index for index, _ in order[place : place + count - len(taken)]]
        return taken

    def _rank(self, kind: str, *numbers: int) -> bytes:
        text = " ".join([kind, str(self._seed), *map(str, numbers)])
        return hashlib.sha256(text.encode("ascii")).digest()


def _prior_name(key: tuple[Shape, int]) -> str:
    (height, width), group = key
    return f"prior {height}x{width}" + (f" of class {group}" if group else "")


def _by_shape(examples: Sequence[Example], group: int | None = None) -> dict[Shape, list[int]]:
    groups: dict[Shape, list[int]] = {}
    for index, example in enumerate(examples):
        if group is not None and example.group != group:
            continue
        groups.setdefault(example.shape, []).append(index)
    return dict(sorted(groups.items()))


def _digest_example(digest: hashlib._Hash, example: Example, bits: bool) -> None:
    if not bits:
        digest.update(f"{example.origin};".encode())
    for tensor in (example.mean, example.std, example.mask, example.sizes) if bits else (example.sizes,):
        if tensor is None:
            digest.update(b"none;")
        else:
            digest.update(f"{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    if example.group or example.repeats > 1:
        digest.update(f"class {example.group}, {example.repeats} times;".encode())
    text = example.text.encode("utf-8", "replace")
    digest.update(f"{len(text)};".encode() + text)


@dataclass(frozen=True)
class Batch:
    """The photos' rows and after them those of the class, on the CPU.

    latents, noise: (B, C, h, w). timesteps: (B,), integers. is_prior: (B,). mask: (B, 1, h, w) or None. sizes: (B, 6).
    condition_noise: (B, C, h, w), of the condition of a super-resolution stage, else None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    is_prior: Tensor
    mask: Tensor | None
    sizes: Tensor
    texts: list[str]
    condition_noise: Tensor | None = None


def generator_for(seed: int, *numbers: int) -> torch.Generator:
    """A generator on the CPU for one purpose; other numbers give another stream."""
    text = " ".join(str(number) for number in (seed, *numbers))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little"))


class Batches:
    """Draws the passes of a run. `order` is its only state; all else comes from the seed and the step's number.

    settings: with the prior resolved: "images" (class images of the data), "model" (the photos again, told to be of the
    class) or "off". class_texts: what stands for each class, by the examples' group. timesteps: of the schedule.
    processes: of a run on several devices. Each draws the whole batch and takes its own rows, so that together they do
    what one would do with a batch of that size. conditioned: whether batches have `condition_noise`.
    """

    def __init__(
        self,
        data: TrainingData,
        settings: TrainingSettings,
        batch_size: int,
        class_texts: Sequence[str],
        timesteps: int,
        rank: int = 0,
        processes: int = 1,
        conditioned: bool = False,
    ) -> None:
        self.conditioned = conditioned
        self.data, self.settings, self.class_texts = data, settings, list(class_texts)
        self.timesteps, self.rank, self.processes = timesteps, rank, processes
        self.count = batch_size * processes
        self.order = Order(data, settings.seed)
        self.masked = any(example.mask is not None for example in data.photos)

    def texts(self) -> list[str]:
        """Every text that a batch may have."""
        dropped = [""] if self.settings.caption_dropout else []
        told = [example.text for example in (*self.data.photos, *self.data.prior)]
        return list(dict.fromkeys([*told, *self.class_texts, *dropped]))

    def draw(self, step: int, part: int) -> Batch:
        """The pass number `part` of a step. Moves `order` on."""
        photos = [self.data.photos[index] for index in self.order.next_batch(self.count)]
        generator = generator_for(self.settings.seed, step, part)
        batch = self._rows(photos, [photo.text for photo in photos], generator, is_prior=False)
        if self.settings.prior == "model":
            same = self._rows(photos, [self.class_texts[p.group] for p in photos], generator, is_prior=True)
            batch = _together(batch, same)
        elif self.settings.prior == "images":
            indices = [index for p in photos for index in self.order.next_prior(p.shape, 1, p.group)]
            prior = [self.data.prior[index] for index in indices]
            batch = _together(batch, self._rows(prior, [p.text for p in prior], generator, is_prior=True))
        return self._varied(batch, step, part)

    def _varied(self, batch: Batch, step: int, part: int) -> Batch:
        """The batch with shifted noise and without some texts. Drawn by separate generators, so that whatever is
        not asked for changes nothing."""
        mine, count, settings = slice(self.rank, None, self.processes), len(batch.texts), self.settings
        if settings.noise_offset:
            shape = (count * self.processes, batch.noise.shape[1], 1, 1)
            shift = torch.randn(shape, generator=generator_for(settings.seed, step, part, _NOISE))[mine]
            batch = replace(batch, noise=batch.noise + settings.noise_offset * shift)
        if self.conditioned:
            shape = (count * self.processes, *batch.noise.shape[1:])
            drawn = torch.randn(shape, generator=generator_for(settings.seed, step, part, _CONDITION))[mine]
            batch = replace(batch, condition_noise=drawn)
        if settings.caption_dropout:
            draws = torch.rand(count * self.processes, generator=generator_for(settings.seed, step, part, _TEXT))[mine]
            kept = (draws >= settings.caption_dropout).tolist()
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
