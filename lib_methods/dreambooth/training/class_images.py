"""Class images: what the frozen model generates for the class, so that the class does not turn into the subject.

They are in folders named by what they were generated with, size included, and serve all runs that ask for the same.
Image number n of a folder has n as its seed: more are added to those that are there, and an interrupted generation
continues. A missing one is generated in the batch that it was in: alone it would differ in its last bits.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lib_methods.dreambooth.model.model import Parts, TrainingModel
from lib_methods.dreambooth.model.sampler import SOLVER, Prompts, draw, embed_prompts
from lib_methods.dreambooth.photos.image import Size
from lib_methods.dreambooth.photos.subjects import caption_of
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.errors import Cancelled, UserError, out_of_memory
from lib_methods.files import write_whole
from lib_methods.pictures.fit import to_image

Progress = Callable[[int, int], None]
CFG_SCALE = 7.0
MANIFEST = "manifest.json"
_VERSION = 1  # counts up when the same words would give other images


@dataclass(frozen=True)
class _Picture:
    path: Path
    size: Size
    seed: int


def class_images(
    model: TrainingModel,
    settings: TrainingSettings,
    folder: Path,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    sizes: Sequence[Size] | None = None,
    batch: int = 4,
    parts: Parts | None = None,
) -> list[Path]:
    """The class's PNG files, drawn where they are missing or broken, in subfolders of `folder`, one for each size.

    sizes: width and height in pixels of each image; None for `settings.class_images` squares. batch: images of one
    size drawn at once, fewer where memory runs out. parts: how the model's parts come to the device. progress:
    told the images done and all of them. Raises Cancelled between two batches when cancelled, and
    UserError when the disk is full or the model draws numbers that are not finite; what was drawn before is then
    kept.
    """
    if sizes is None:
        side = settings.resolution or model.resolution
        sizes = [(side, side)] * settings.class_images
    parts = parts or Parts(model)
    told = {size: _told(model, settings, size) for size in sizes}
    pictures = _pictures(folder, sizes, {size: _key(values) for size, values in told.items()})
    missing = {picture for picture in pictures if not _is_whole(picture)}
    batches = [group for size in told for group in _batches([p for p in pictures if p.size == size], batch)]
    progress(len(pictures) - len(missing), len(pictures))
    for place, size in {picture.path.parent: picture.size for picture in missing}.items():
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
            drawn = draw(
                model,
                prompt[torch.zeros(len(now), dtype=torch.long)],
                size=now[0].size,
                steps=settings.class_steps,
                cfg_scale=CFG_SCALE,
                seeds=[picture.seed for picture in now],
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
        for picture, pixels in zip(now, drawn):
            if picture in missing:
                data = io.BytesIO()
                to_image(pixels).save(data, "PNG")
                write_whole(picture.path, data.getvalue(), "The class image")
        missing.difference_update(now)
        progress(len(pictures) - len(missing), len(pictures))
    return [picture.path for picture in pictures]


def _batches(pictures: Sequence[_Picture], count: int) -> list[Sequence[_Picture]]:
    return [pictures[start : start + count] for start in range(0, len(pictures), count)]


def _pictures(folder: Path, sizes: Sequence[Size], keys: dict[Size, str]) -> list[_Picture]:
    """The images in the order of their sizes, those of each size numbered by themselves."""
    counts = dict.fromkeys(sizes, 0)
    pictures = []
    for size in sizes:
        number = counts[size]
        counts[size] += 1
        pictures.append(_Picture(folder / keys[size] / f"class-{number:05d}.png", size, number))
    return pictures


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


def _is_whole(wanted: _Picture) -> bool:
    """Whether there is an image that can be read to its end and has the right size."""
    try:
        with Image.open(wanted.path) as picture:
            picture.load()
            return picture.format == "PNG" and picture.size == wanted.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
