"""From photos to a run's data: found, named, accompanied by class images, and encoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_methods.dreambooth.model.identifier import check_class_noun, check_identifier, pick_identifier
from lib_methods.dreambooth.model.model import Parts, TrainingModel
from lib_methods.dreambooth.photos.image import Photo, Size, bucket_for, fit_warnings, open_photo
from lib_methods.dreambooth.photos.subjects import Subject, caption_of, with_identifiers
from lib_methods.dreambooth.settings import CLASS_IMAGES, TrainingSettings
from lib_methods.dreambooth.training.class_images import class_images
from lib_methods.dreambooth.training.data import TrainingData
from lib_methods.dreambooth.training.latents import Item, encode_pictures
from lib_methods.dreambooth.training.plan import TrainingPlan
from lib_methods.jobs.log import Report

CACHE = "cache"  # in the run's folder
_ENCODED_AT_ONCE = 4


def named(subjects: Sequence[Subject], seed: int, model: TrainingModel, warn: Callable[[str], object]) -> list[Subject]:
    """The subjects with identifiers, the user's or rare words. Says what is doubtful in them and in the class nouns."""
    words = model.token_words()
    taken = [subject.concept.identifier for subject in subjects if subject.concept.identifier.strip()]
    identifiers = []
    for concept in (subject.concept for subject in subjects):
        for text in check_class_noun(concept.class_noun, model.tokens):
            warn(text)
        identifier = concept.identifier
        if identifier.strip():
            for text in check_identifier(identifier, words, model.tokens, concept.class_noun):
                warn(text)
        else:
            identifier = pick_identifier(words, model.tokens, seed, avoid=taken)[0]
            taken.append(identifier)
        identifiers.append(identifier)
    return with_identifiers(subjects, identifiers)


def class_groups(subjects: Sequence[Subject]) -> list[int]:
    """The number of each subject's class: those that have the same class images share one."""
    kinds = [(s.concept.class_noun.casefold(), tuple(photo.path for photo in s.class_photos)) for s in subjects]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return [numbers[kind] for kind in kinds]


def class_texts(subjects: Sequence[Subject], settings: TrainingSettings) -> list[str]:
    """What stands for each class, in the order of `class_groups`."""
    texts = {g: caption_of(None, settings.about(s.concept)) for g, s in zip(class_groups(subjects), subjects)}
    return [texts[group] for group in sorted(texts)]


def drawing_parts(
    plan: TrainingPlan, model: TrainingModel, follow: Callable[[], object] | None = None, *, movable: bool = True
) -> Parts:
    """How the model is there for drawing, as the plan has it. follow, movable: see `Parts`.

    It computes as the training does, but for SDXL's VAE, which overflows in fp16.
    """
    dtype = None if plan.autocast == torch.float16 and model.family == "sdxl" else plan.autocast
    return Parts(model, one_at_a_time=plan.one_part_at_a_time, dtype=dtype, follow=follow, movable=movable)


def photo_items(
    photos: Sequence[Photo], settings: TrainingSettings, resolution: int, group: int = 0, repeats: int = 1
) -> list[Item]:
    """The photos as items: each in its bucket, or in a square, and with `flip` a mirrored one after each.

    A mirrored photo is encoded as such: an autoencoder's latents of it are not the mirrored latents.
    """
    items = []
    for photo in photos:
        size = bucket_for(photo.width, photo.height, resolution) if settings.buckets else (resolution, resolution)
        for flipped in (False, True) if settings.flip else (False,):
            text = caption_of(photo, settings)
            items.append(Item(photo, size, text, flipped, settings.masks, group=group, repeats=repeats))
    return items


def class_items(files: Sequence[Path], sizes: Sequence[Size], settings: TrainingSettings, group: int = 0) -> list[Item]:
    """The class images as items, each of its size, at which it was drawn. UserError for a damaged file."""
    text = caption_of(None, settings)
    return [
        Item(open_photo(file), size, text, masked=False, origin=f"{file.parent.name}/{file.name}", group=group)
        for file, size in zip(files, sizes, strict=True)
    ]


def own_class_items(
    pictures: Sequence[Photo], sizes: Sequence[Size], settings: TrainingSettings, group: int = 0
) -> list[Item]:
    """The user's own images of a class as items: each in the photos' size that is nearest to its shape.

    A size that none comes to gets its share of those that are nearest.

    sizes: those of the photos. An image's caption is its text, else the class prompt.
    """
    kinds = sorted(set(sizes))

    def distance(picture: Photo, size: Size) -> float:
        return abs(math.log(picture.width / picture.height) - math.log(size[0] / size[1]))

    dealt = [(picture, min(kinds, key=lambda size: distance(picture, size))) for picture in pictures]
    for size in [kind for kind in kinds if kind not in {taken for _, taken in dealt}]:
        share = math.ceil(len(pictures) * list(sizes).count(size) / len(sizes))
        nearest = sorted(range(len(pictures)), key=lambda index: (distance(pictures[index], size), index))
        dealt += [(pictures[index], size) for index in sorted(nearest[:share])]
    plain = caption_of(None, settings)
    texts = [picture.caption if settings.captions and picture.caption else plain for picture, _ in dealt]
    return [Item(p, size, text, masked=False, group=group) for (p, size), text in zip(dealt, texts)]


def deal_sizes(sizes: Sequence[Size], count: int) -> list[Size]:
    """`count` sizes for class images in the proportions of the photos' `sizes`, as a batch has one size.

    Each comes at least once, so that there may come out more than `count`. The first so many are in these proportions
    too. Nothing for nothing.
    """
    if count < 1 or not sizes:
        return []
    kinds = sorted(set(sizes))
    dealt = dict.fromkeys(kinds, 0)
    order: list[Size] = []
    for _ in range(max(count, len(kinds))):
        # a size that has none yet comes first, then whoever is furthest behind its share
        size = min(kinds, key=lambda kind: (dealt[kind] > 0, (dealt[kind] + 1) / sizes.count(kind), kind))
        dealt[size] += 1
        order.append(size)
    return order


def photos_digest(photos: Sequence[Photo]) -> str:
    """SHA-256 over the photos' bytes, captions and masks, as 64 hex digits; names and places do not count."""
    digest = hashlib.sha256()
    for photo in photos:
        parts = [photo.sha256, photo.mask_sha256]
        parts.append(hashlib.sha256((photo.caption or "").encode("utf-8", "replace")).hexdigest())
        digest.update((" ".join(parts) + ";").encode("ascii"))
    return digest.hexdigest()


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
        """The photos and, with prior "images", the class images, all as latents. Cancelled when cancelled; what
        was drawn and encoded until then is kept for the next time."""
        items, pictures = [], []
        for subject, group in zip(subjects, class_groups(subjects)):
            about = self.settings.about(subject.concept)
            items += photo_items(subject.photos, about, self.settings.resolution, group, subject.concept.repeats)
        photos = [photo for subject in subjects for photo in subject.photos]
        for text in fit_warnings(photos, list({item.photo.path: item.size for item in items}.values())):
            self.report.warning(text)
        if self.settings.prior == "images":
            first = dict(reversed(list(zip(class_groups(subjects), subjects))))
            for group, subject in sorted(first.items(), key=lambda entry: entry[0]):
                pictures += self._class_items(subject, [item for item in items if item.group == group], group)
        examples = self._encoded(items, "Encoding photos")
        return TrainingData(examples, self._encoded(pictures, "Encoding class images") if pictures else [])

    def _class_items(self, subject: Subject, items: Sequence[Item], group: int) -> list[Item]:
        about, sizes = self.settings.about(subject.concept), [item.size for item in items]
        if subject.class_photos:
            return own_class_items(subject.class_photos, sizes, about, group)
        sizes = deal_sizes(sizes, self.settings.class_images)
        parts = drawing_parts(self.plan, self.model)
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
        parts = drawing_parts(self.plan, self.model)
        examples, notes = encode_pictures(
            self.model,
            items,
            1 if parts.one_at_a_time else _ENCODED_AT_ONCE,
            parts.device,
            self.plan.autocast or torch.float32,
            folder=self.folder / CACHE,
            progress=lambda done, total: self.report.phase(text, done, total),
            cancelled=self.cancelled,
            here=lambda: parts.only(self.model.vae),
        )
        for note in notes:
            self.report.warning(note)
        return examples
