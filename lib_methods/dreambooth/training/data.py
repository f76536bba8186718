"""A run's data: photos and class images as latents. Mean and deviation are kept, so the VAE is not needed again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from lib_methods.dreambooth.model.model import Parts, TrainingModel
from lib_methods.dreambooth.photos.image import (
    Photo,
    Size,
    bucket_for,
    fit,
    fit_mask,
    fit_warnings,
    micro_conditioning,
    open_photo,
    read_mask,
    read_photo,
)
from lib_methods.dreambooth.photos.subjects import Subject, caption_of, texts_of
from lib_methods.dreambooth.settings import CLASS_IMAGES, TrainingSettings
from lib_methods.dreambooth.training.batches import Example, TrainingData
from lib_methods.dreambooth.training.plan import TrainingPlan
from lib_methods.dreambooth.training.sampler import class_images, deal_sizes, generation_parts
from lib_methods.errors import Cancelled, CheckpointError, UserError, out_of_memory
from lib_methods.jobs.log import Report
from lib_methods.safetensors import read_tensors, write_tensors

CACHE = "cache"  # in the run's folder
ENCODED_AT_ONCE = 4  # images, where memory is not short


@dataclass(frozen=True)
class Maker:
    """Makes a run's data. folder: the run's own."""

    model: TrainingModel
    settings: TrainingSettings
    plan: TrainingPlan
    folder: Path
    report: Report
    cancelled: Callable[[], bool]

    def data(self, subjects: Sequence[Subject]) -> TrainingData:
        """Photos and, with prior "images", class images. Raises Cancelled; what was made until then is kept."""
        items, prior = [], []
        for subject, group in zip(subjects, class_groups(subjects)):
            about = self.settings.about(subject.concept)
            items += photo_items(subject.photos, about, group, subject.concept.repeats)
        sizes = {item.photo.path: item.size for item in items}
        for text in fit_warnings([photo for subject in subjects for photo in subject.photos], list(sizes.values())):
            self.report.warning(text)
        if self.settings.prior == "images":
            first = dict(reversed(list(zip(class_groups(subjects), subjects))))
            for group, subject in sorted(first.items(), key=lambda entry: entry[0]):
                prior += self._class_items(subject, [item for item in items if item.group == group], group)
        examples = self._encoded(items, "Encoding photos")
        return TrainingData(examples, self._encoded(prior, "Encoding class images") if prior else [])

    def _class_items(self, subject: Subject, items: Sequence[Item], group: int) -> list[Item]:
        about, sizes = self.settings.about(subject.concept), [item.size for item in items]
        if subject.class_photos:
            return own_class_items(subject.class_photos, sizes, about, group)
        sizes = deal_sizes(sizes, self.settings.class_images)
        parts = generation_parts(self.plan, self.model)
        # where there is room for it, the VAE stays from one batch to the next
        with nullcontext() if parts.one_at_a_time else parts.only(self.model.vae):
            files = class_images(
                self.model,
                about,
                self.settings.out / CLASS_IMAGES,
                lambda done, total: self.report.phase("Generating class images", done, total),
                self.cancelled,
                sizes=sizes,
                parts=parts,
            )
        return class_items(files, sizes, about, group)

    def _encoded(self, items: Sequence[Item], text: str) -> list:
        parts = generation_parts(self.plan, self.model)
        examples, notes = encode_images(
            self.model,
            items,
            1 if parts.one_at_a_time else ENCODED_AT_ONCE,
            parts,
            self.plan.autocast or torch.float32,
            self.folder / CACHE,
            progress=lambda done, total: self.report.phase(text, done, total),
            cancelled=self.cancelled,
        )
        for note in notes:
            self.report.warning(note)
        return examples


def class_groups(subjects: Sequence[Subject]) -> list[int]:
    """The number of each subject's class: those that have the same class images share one."""
    kinds = [(s.concept.class_noun.casefold(), tuple(photo.path for photo in s.class_photos)) for s in subjects]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return [numbers[kind] for kind in kinds]


def class_texts(subjects: Sequence[Subject], settings: TrainingSettings) -> list[str]:
    """What stands for each class, in the order of `class_groups`."""
    texts = {g: caption_of(None, settings.about(s.concept)) for g, s in zip(class_groups(subjects), subjects)}
    return [texts[group] for group in sorted(texts)]


def photo_items(photos: Sequence[Photo], settings: TrainingSettings, group: int = 0, repeats: int = 1) -> list[Item]:
    """The photos as items: each in its bucket, or in a square, with each of its texts; with `flip` a mirrored one after
    each.

    A mirrored photo is encoded as such: an autoencoder's latents of it are not the mirrored latents.
    """
    items, side = [], settings.resolution
    for photo in photos:
        size = bucket_for(photo.width, photo.height, side) if settings.buckets else (side, side)
        for flipped in (False, True) if settings.flip else (False,):
            for text in texts_of(photo, settings):
                items.append(Item(photo, size, text, flipped, settings.masks, group=group, repeats=repeats))
    return items


def class_items(files: Sequence[Path], sizes: Sequence[Size], settings: TrainingSettings, group: int = 0) -> list[Item]:
    """The class images as items, each of its size, at which it was generated. UserError for a damaged file."""
    text = caption_of(None, settings)
    return [
        Item(open_photo(file), size, text, masked=False, origin=f"{file.parent.name}/{file.name}", group=group)
        for file, size in zip(files, sizes, strict=True)
    ]


def own_class_items(
    photos: Sequence[Photo], sizes: Sequence[Size], settings: TrainingSettings, group: int = 0
) -> list[Item]:
    """The user's own images of a class as items: each in the photos' size that is nearest to its shape.

    A size that none comes to gets its share of those that are nearest.

    sizes: those of the photos. An image's caption is its text, else the class prompt.
    """
    kinds = sorted(set(sizes))

    def distance(photo: Photo, size: Size) -> float:
        return abs(math.log(photo.width / photo.height) - math.log(size[0] / size[1]))

    dealt = [(photo, min(kinds, key=lambda size: distance(photo, size))) for photo in photos]
    for size in [kind for kind in kinds if kind not in {taken for _, taken in dealt}]:
        share = math.ceil(len(photos) * list(sizes).count(size) / len(sizes))
        nearest = sorted(range(len(photos)), key=lambda index: (distance(photos[index], size), index))
        dealt += [(photos[index], size) for index in sorted(nearest[:share])]
    plain = caption_of(None, settings)
    texts = [photo.caption if settings.captions and photo.caption else plain for photo, _ in dealt]
    return [Item(p, size, text, masked=False, group=group) for (p, size), text in zip(dealt, texts)]


# -- latents

_ENCODING_VERSION = 1  # of what is done to an image before it is encoded
_Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Item:
    """An image to encode: brought to `size` (width, height) in pixels, mirrored or not, with its text.

    masked: with its mask, if any. origin: what generated it, "" for a file. group, repeats: see `Example`.
    """

    photo: Photo
    size: Size
    text: str
    flipped: bool = False
    masked: bool = True
    origin: str = ""
    group: int = 0
    repeats: int = 1


def encode_images(
    model: TrainingModel,
    items: Sequence[Item],
    batch: int,
    parts: Parts,
    dtype: torch.dtype,
    folder: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[list[Example], list[str]]:
    """The items as examples in their order, on the CPU in fp32, and warnings.

    batch: images of one size encoded together, in halves where memory runs out. dtype: computed in; where half
    precision overflows (SDXL's autoencoder), fp32 takes its place. folder: keeps the latents of each image, so that an
    interrupted encoding continues with the same numbers: a batch is encoded as a whole or not at all.

    An image that can no longer be read is left out with a warning. Raises UserError where none is left, and Cancelled.
    """
    notes: list[str] = []
    cache = _Cache(folder, model, dtype, notes)
    names: dict[int, str] = {}
    kept: dict[str, _Moments | None] = {}
    by_size: dict[Size, list[int]] = {}
    for index, item in enumerate(items):
        try:
            names[index] = cache.name(item.photo.sha256, item)
        except UserError as error:
            notes.append(f"{error} It is left out.")
            continue
        if names[index] not in kept:  # an image with two texts is encoded once
            kept[names[index]] = cache.read(names[index], item.size)
            by_size.setdefault(item.size, []).append(index)
    groups = [same[start : start + batch] for same in by_size.values() for start in range(0, len(same), batch)]
    missing = [group for group in groups if any(kept[names[index]] is None for index in group)]
    done = len(kept) - sum(map(len, missing))
    if done:
        progress(done, len(kept))
    with parts.only(model.vae) if missing else nullcontext():
        for group in missing:
            if cancelled():
                raise Cancelled("Stopped while the photos were encoded.")
            for index, moments in _encode(model, items, group, parts.device, dtype, notes):
                if kept[names[index]] is None:
                    kept[names[index]] = moments
                    cache.write(names[index], moments)
            done += len(group)
            progress(done, len(kept))
    examples = [
        _example(item, found, notes, cache.name(item.origin, item) if item.origin else name)
        for item, name in ((items[index], name) for index, name in names.items())
        if (found := kept[name]) is not None
    ]
    if items and not examples:
        raise UserError("None of the images can be read any more.")
    return examples, list(dict.fromkeys(notes))


def _encode(
    model: TrainingModel,
    items: Sequence[Item],
    group: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    notes: list[str],
) -> Iterator[tuple[int, _Moments]]:
    """The moments of a group's images, each with its index."""
    read: list[tuple[int, Tensor]] = []
    for index in group:
        try:
            image = _turned(read_photo(items[index].photo), items[index].flipped)
        except UserError as error:
            notes.append(f"{error} It is left out.")
            continue
        read.append((index, fit(image, items[index].size)))
    if not read:
        return
    pixels = torch.stack([image for _, image in read]).to(device)
    mean, std = _moments(model, pixels, dtype)
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        mean, std = _moments(model, pixels, torch.float32)
    for row, (index, _) in enumerate(read):
        if not (torch.isfinite(mean[row]).all() and torch.isfinite(std[row]).all()):
            raise UserError(
                f'The model\'s autoencoder (VAE) returns NaN or infinite values for "{items[index].photo.path.name}". '
                "The base model may be damaged."
            )
        yield index, (mean[row].clone(), std[row].clone())


def _moments(model: TrainingModel, pixels: Tensor, dtype: torch.dtype) -> _Moments:
    half = dtype in (torch.float16, torch.bfloat16)
    try:
        # autocast leaves the weights as they are; casting them there and back would lose digits
        with torch.no_grad(), torch.autocast(pixels.device.type, dtype if half else torch.bfloat16, enabled=half):
            mean, std = model.moments(pixels)
        return mean.float().cpu(), std.float().cpu()
    except (RuntimeError, MemoryError) as error:
        if len(pixels) == 1 or not out_of_memory(error):
            raise
    means, stds = zip(*(_moments(model, part, dtype) for part in pixels.chunk(2)))
    return torch.cat(means), torch.cat(stds)


def _turned(image: Image.Image, flipped: bool) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image


def _example(item: Item, moments: _Moments, notes: list[str], origin: str) -> Example:
    photo, mask = item.photo, None
    if item.masked and photo.mask_path is not None:
        try:
            grey = read_mask(photo)
        except UserError as error:
            notes.append(f"{error} The photo is used without its mask.")
            grey = None
        if grey is not None:
            shown = fit_mask(_turned(grey, item.flipped), photo.width, photo.height, item.size)
            height, width = moments[0].shape[-2:]
            mask = nn.functional.adaptive_avg_pool2d(shown, (height, width))
    if mask is not None:
        origin += f" {photo.mask_sha256}"
    sizes = micro_conditioning(photo.width, photo.height, item.size)
    return Example(*moments, mask, sizes, item.text, origin, item.group, item.repeats)


class _Cache:
    """Latents by image, size and autoencoder, each in a file. What cannot be read is as if it were not there, and
    what cannot be written is done without."""

    def __init__(self, folder: Path, model: TrainingModel, dtype: torch.dtype, notes: list[str]) -> None:
        self._folder, self._model, self._notes = folder, model, notes
        digest = hashlib.sha256()  # of the weights, as there may be another autoencoder over the same checkpoint
        for name, tensor in sorted(model.vae.state_dict().items()):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(plain.view(torch.uint8).numpy().tobytes())
        self._identity = f"{_ENCODING_VERSION} {model.sha256} {digest.hexdigest()} {dtype}"

    def name(self, source: str, item: Item) -> str:
        text = f"{self._identity} {source} {item.size[0]}x{item.size[1]} {item.flipped}"
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, name: str, size: Size) -> _Moments | None:
        file = self._folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            tensors, _ = read_tensors(file)
        except CheckpointError:
            return None
        side = self._model.pixels_per_latent
        shape = (self._model.latent_channels, size[1] // side, size[0] // side)
        found = [t for t in (tensors.get("mean"), tensors.get("std")) if t is not None and tuple(t.shape) == shape]
        if len(found) < 2 or any(t.dtype != torch.float32 or not torch.isfinite(t).all() for t in found):
            return None
        return found[0], found[1]

    def write(self, name: str, moments: _Moments) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._folder / f"{name}.safetensors", {"mean": moments[0], "std": moments[1]}, finite=False)
        except OSError:
            self._notes.append("Encoded images cannot be cached: the disk is full or the folder is read-only.")
