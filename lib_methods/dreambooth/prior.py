"""Class images: what the frozen model draws of the class, so that the class does not turn into the subject.

They lie in a folder named by what they were drawn with, and serve all trainings that ask for the same. Picture number n
has n as its seed: more pictures are added to those that are there, and a drawing that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .captions import caption_of
from .draw import SOLVER, draw
from .errors import DreamBoothError, TrainingStopped
from .model import TrainingModel
from .settings import TrainingSettings
from .whole_file import write_whole

Progress = Callable[[int, int], None]
CFG_SCALE = 7.0
MANIFEST = "manifest.json"
_VERSION = 1  # counts up when the same words would give other pictures


def class_prompt(settings: TrainingSettings) -> str:
    """What is drawn, and what the pictures are captioned: "a [class noun]" unless the settings say otherwise."""
    return caption_of(None, settings)


def class_images(
    model: TrainingModel,
    settings: TrainingSettings,
    folder: Path,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    batch: int = 4,
    cfg_scale: float = CFG_SCALE,
) -> list[Path]:
    """The `settings.class_images` PNG files, drawn where they are missing or broken, in a subfolder of `folder`.

    batch: pictures drawn at once, fewer where memory does not suffice. progress: told the pictures done and all of
    them. Raises TrainingStopped between two batches when cancelled, and DreamBoothError when the disk is full or the
    model draws numbers that are not finite; what was drawn before is then kept.
    """
    told = _told(model, settings, cfg_scale)
    place = folder / _key(told)
    side = settings.resolution or model.resolution
    paths = [place / f"class-{number:05d}.png" for number in range(settings.class_images)]
    missing = [number for number, path in enumerate(paths) if not _is_whole(path, side)]
    _note(progress, paths, missing)
    if missing:
        write_whole(place / MANIFEST, json.dumps(told, indent=2, ensure_ascii=False).encode("utf-8"))
    while missing:
        if cancelled():
            raise TrainingStopped("Stopped while drawing class images; those that are done are kept.")
        now = missing[:batch]
        try:
            pictures = _draw(model, settings, side, cfg_scale, now)
        except torch.cuda.OutOfMemoryError as error:
            if batch == 1:
                raise DreamBoothError("The memory does not suffice to draw a single class image.") from error
            batch = max(1, batch // 2)
            continue
        for number, picture in zip(now, pictures):
            write_whole(paths[number], _png(picture), "The class image")
        missing = missing[len(now) :]
        _note(progress, paths, missing)
    return paths


def _draw(
    model: TrainingModel, settings: TrainingSettings, side: int, cfg_scale: float, seeds: Sequence[int]
) -> Tensor:
    prompts = [class_prompt(settings)] * len(seeds)
    return draw(model, prompts, size=(side, side), steps=settings.class_steps, cfg_scale=cfg_scale, seeds=seeds)


def _told(model: TrainingModel, settings: TrainingSettings, cfg_scale: float) -> dict[str, object]:
    """All that the pictures depend on, but for their number."""
    return {
        "version": _VERSION,
        "model": model.name,
        "sha256": model.sha256,
        "parameterization": model.parameterization,
        "prompt": class_prompt(settings),
        "steps": settings.class_steps,
        "cfg_scale": cfg_scale,
        "side": settings.resolution or model.resolution,
        "solver": SOLVER,
    }


def _key(told: dict[str, object]) -> str:
    """The name of a set's folder. The model's file may be renamed."""
    kept = {name: value for name, value in told.items() if name != "model"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(path: Path, side: int) -> bool:
    """Whether there is a picture that can be read to its end and has the right size."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.format == "PNG" and picture.size == (side, side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _png(pixels: Tensor) -> bytes:
    """(3, H, W) in [-1, 1] as a PNG file."""
    numbers = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    data = io.BytesIO()
    Image.fromarray(numbers).save(data, "PNG")
    return data.getvalue()


def _note(progress: Progress | None, paths: Sequence[Path], missing: Sequence[int]) -> None:
    if progress is not None:
        progress(len(paths) - len(missing), len(paths))
