"""A run's data: photos and class images, which the frozen model generates where they are missing, as latents.

Class images keep the class from turning into the subject. Each folder is named by a hash of model, prompt, size
and settings, and runs with the same ones share it. Image n has seed n, so more images can be added and an interrupted
generation resumed. A missing image is generated in its original batch: alone it would differ in its last bits.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lib_methods.dreambooth.model.model import Parts, TrainingModel
from lib_methods.dreambooth.model.sampler import SOLVER, Prompts, embed_prompts, generate
from lib_methods.dreambooth.photos.image import Photo, Size, bucket_for, fit_warnings, open_photo
from lib_methods.dreambooth.photos.subjects import Subject, caption_of
from lib_methods.dreambooth.settings import CLASS_IMAGES, TrainingSettings
from lib_methods.dreambooth.training.batches import TrainingData
from lib_methods.dreambooth.training.latents import Item, encode_images
from lib_methods.dreambooth.training.plan import TrainingPlan
from lib_methods.errors import Cancelled, UserError, out_of_memory
from lib_methods.files import write_whole
from lib_methods.jobs.log import Report
from lib_methods.pictures.fit import to_image

CACHE = "cache"  # in the run's folder
_ENCODED_AT_ONCE = 4
CFG_SCALE = 7.0
MANIFEST = "manifest.json"
_VERSION = 1  # counts up when the same words would give other images


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
        was generated and encoded until then is kept for the next time."""
        items, prior = [], []
        for subject, group in zip(subjects, class_groups(subjects)):
            about = self.settings.about(subject.concept)
            items += photo_items(subject.photos, about, self.settings.resolution, group, subject.concept.repeats)
        photos = [photo for subject in subjects for photo in subject.photos]
        for text in fit_warnings(photos, list({item.photo.path: item.size for item in items}.values())):
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
            1 if parts.one_at_a_time else _ENCODED_AT_ONCE,
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


def generation_parts(
    plan: TrainingPlan, model: TrainingModel, follow: Callable[[], object] | None = None, *, movable: bool = True
) -> Parts:
    """How the model is there for generating, as the plan has it. follow, movable: see `Parts`.

    It computes as in training, but for SDXL's VAE, which overflows in fp16.
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


@dataclass(frozen=True)
class _ClassImage:
    path: Path
    size: Size
    seed: int


def class_images(
    model: TrainingModel,
    settings: TrainingSettings,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    sizes: Sequence[Size] | None = None,
    batch: int = 4,
    parts: Parts | None = None,
) -> list[Path]:
    """The class's PNG files, generated where they are missing or broken, in subfolders of `folder`, one for each size.

    sizes: width and height in pixels of each image; None for `settings.class_images` squares. batch: images of one
    size generated at once, fewer where memory runs out. parts: how the model's parts come to the device. progress:
    told the images done and all of them. Raises Cancelled between two batches when cancelled, and
    UserError when the disk is full or the model returns numbers that are not finite; what was finished before is then
    kept.
    """
    if sizes is None:
        side = settings.resolution or model.resolution
        sizes = [(side, side)] * settings.class_images
    parts = parts or Parts(model)
    told = {size: _told(model, settings, size) for size in sizes}
    wanted = _class_images(folder, sizes, {size: _key(values) for size, values in told.items()})
    missing = {image for image in wanted if not _is_whole(image)}
    batches = [group for size in told for group in _batches([p for p in wanted if p.size == size], batch)]
    progress(len(wanted) - len(missing), len(wanted))
    for place, size in {image.path.parent: image.size for image in missing}.items():
        write_whole(place / MANIFEST, json.dumps(told[size], indent=2, ensure_ascii=False).encode("utf-8"))
    prompt: Prompts | None = None
    while missing:
        if cancelled():
            raise Cancelled("Stopped while generating class images. Finished images are kept.")
        now = batches[0]
        if missing.isdisjoint(now):
            del batches[0]
            continue
        try:
            if prompt is None:  # once for all, as the text encoders' way to the device and back takes long
                prompt = embed_prompts(model, [caption_of(None, settings)], cfg_scale=CFG_SCALE, parts=parts)
            made = generate(
                model,
                prompt[torch.zeros(len(now), dtype=torch.long)],
                size=now[0].size,
                steps=settings.class_steps,
                cfg_scale=CFG_SCALE,
                seeds=[image.seed for image in now],
                parts=parts,
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if parts.spare():
                continue
            if len(now) == 1:
                raise UserError("Out of memory: not even one class image fits. Choose a smaller resolution.") from error
            batches = [part for group in batches for part in _batches(group, len(now) // 2)]
            continue
        for image, pixels in zip(now, made):
            if image in missing:
                data = io.BytesIO()
                to_image(pixels).save(data, "PNG")
                write_whole(image.path, data.getvalue(), "The class image")
        missing.difference_update(now)
        progress(len(wanted) - len(missing), len(wanted))
    return [image.path for image in wanted]


def _batches(wanted: Sequence[_ClassImage], count: int) -> list[Sequence[_ClassImage]]:
    return [wanted[start : start + count] for start in range(0, len(wanted), count)]


def _class_images(folder: Path, sizes: Sequence[Size], keys: dict[Size, str]) -> list[_ClassImage]:
    """The images in the order of their sizes, those of each size numbered by themselves."""
    counts = dict.fromkeys(sizes, 0)
    wanted = []
    for size in sizes:
        number = counts[size]
        counts[size] += 1
        wanted.append(_ClassImage(folder / keys[size] / f"class-{number:05d}.png", size, number))
    return wanted


def _told(model: TrainingModel, settings: TrainingSettings, size: Size) -> dict[str, object]:
    """All that the images depend on, but for their number."""
    width, height = size
    return {
        "version": _VERSION,
        "model": model.name,
        "sha256": model.sha256,
        "parameterization": model.parameterization,
        "prompt": caption_of(None, settings),
        "steps": settings.class_steps,
        "cfg_scale": CFG_SCALE,
        **({"side": width} if width == height else {"size": [width, height]}),
        "solver": SOLVER,
    }


def _key(told: dict[str, object]) -> str:
    """The name of a set's folder. The model's file may be renamed."""
    kept = {name: value for name, value in told.items() if name != "model"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(wanted: _ClassImage) -> bool:
    """Whether there is an image that can be read to its end and has the right size."""
    try:
        with Image.open(wanted.path) as image:
            image.load()
            return image.format == "PNG" and image.size == wanted.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
