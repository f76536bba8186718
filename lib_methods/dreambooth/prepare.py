"""From photos to a training's data: found, named, accompanied by class pictures, and encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .buckets import fit_warnings
from .dataset import TrainingData
from .identifier import check_class_noun, check_identifier, pick_identifier
from .latents import Item, class_items, deal_sizes, encode_pictures, photo_items
from .memory import Plan
from .model import TrainingModel
from .photos import Photo
from .places import Parts
from .prior import class_images
from .progress import Report
from .settings import CLASS_IMAGES, TrainingSettings

CACHE = "cache"  # in the training's folder
_ENCODED_AT_ONCE = 4


def named(settings: TrainingSettings, model: TrainingModel, report: Report) -> TrainingSettings:
    """The settings with an identifier, the user's or a rare word. Says what is doubtful in it and in the class noun."""
    words = model.token_words()
    for text in check_class_noun(settings.class_noun, model.tokens):
        report.warning(text)
    if settings.identifier.strip():
        for text in check_identifier(settings.identifier, words, model.tokens, settings.class_noun):
            report.warning(text)
        return settings
    return replace(settings, identifier=pick_identifier(words, model.tokens, settings.seed)[0])


def drawing_parts(
    plan: Plan, model: TrainingModel, follow: Callable[[], object] | None = None, *, movable: bool = True
) -> Parts:
    """How the model is there for drawing, as the plan has it. follow, movable: see `Parts`.

    It computes as the training does, but for SDXL's VAE, which overflows in fp16.
    """
    dtype = None if plan.autocast == torch.float16 and model.family == "sdxl" else plan.autocast
    return Parts(model, one_at_a_time=plan.one_part_at_a_time, dtype=dtype, follow=follow, movable=movable)


@dataclass(frozen=True)
class Maker:
    """Makes a training's data. folder: the training's own."""

    model: TrainingModel
    settings: TrainingSettings
    plan: Plan
    folder: Path
    report: Report
    cancelled: Callable[[], bool]

    def data(self, photos: Sequence[Photo]) -> TrainingData:
        """The photos and, with prior "images", the class pictures, all as latents. TrainingStopped when cancelled; what
        was drawn and encoded until then is kept for the next time."""
        side = self.settings.resolution
        items = photo_items(photos, self.settings, side)
        for text in fit_warnings(photos, list({item.photo.path: item.size for item in items}.values())):
            self.report.warning(text)
        pictures = self._class_items(items) if self.settings.prior == "images" else []
        examples = self._encoded(items, "Encoding the photos")
        return TrainingData(examples, self._encoded(pictures, "Encoding the class images") if pictures else [])

    def _class_items(self, items: Sequence[Item]) -> list[Item]:
        sizes = deal_sizes([item.size for item in items], self.settings.class_images)
        parts = drawing_parts(self.plan, self.model)
        # where there is room for it, the VAE stays from one batch to the next
        with nullcontext() if parts.one_at_a_time else parts.only(self.model.vae):
            files = class_images(
                self.model,
                self.settings,
                self.settings.out / CLASS_IMAGES,
                lambda done, total: self.report.phase("Drawing the class images", done, total),
                self.cancelled,
                sizes=sizes,
                parts=parts,
            )
        return class_items(files, sizes, self.settings)

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
