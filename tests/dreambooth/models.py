"""Tiny checkpoints, each written once a run; photos made on the spot; noise to try models on."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_methods.dreambooth.model.base import ModelSizes
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.settings import TrainingSettings
from standalone.dreambooth import EngineModel, load_training_model
from tests.standalone import tiny

FAMILIES = ("sd1", "sd2", "sdxl")


def write(folder: Path, family: str = "sd1", *, diffusers: bool = False, **kwargs: Any) -> Path:
    """A tiny checkpoint of the family in `folder`: one file with its yaml, or a diffusers folder."""
    made = _written(family, diffusers, tuple(sorted(kwargs.items())))
    shutil.copytree(made.parent, folder, dirs_exist_ok=True)
    return folder / made.name


@cache
def _written(family: str, diffusers: bool, kwargs: tuple[tuple[str, Any], ...]) -> Path:
    """The same in a folder that it has for itself, as building a model takes longer than copying its file."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = tiny.build(family, **dict(kwargs))
    if diffusers:
        return tiny.write_folder(model, folder / f"{family}-folder")
    return tiny.write_file(model, folder / f"{family}.safetensors")


def load(folder: Path, family: str = "sd1", **kwargs: Any) -> EngineModel:
    return load_training_model(write(folder, family, **kwargs))


def sizes_of(model: TrainingModel) -> ModelSizes:
    """Counted from the modules of the loaded model."""
    parts = (model.unet, *model.encoders)
    unet, *texts = ({name: tuple(weight.shape) for name, weight in part.named_parameters()} for part in parts)
    bare = [{n.split("text_model.")[-1].removeprefix("transformer."): s for n, s in text.items()} for text in texts]
    return ModelSizes.of(model.family, unet, bare, model.resolution, model.pixels_per_latent)


def noisy(seed: int = 0, batch: int = 1, side: int = 8) -> tuple[Tensor, Tensor]:
    """Latents and timesteps."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, side, side, generator=generator), torch.randint(0, 1000, (batch,), generator=generator)


def prediction(model: EngineModel, prompt: str = "a ohwx dog", seed: int = 0) -> Tensor:
    """What the model makes of fixed noise and a prompt; through text encoders and UNet."""
    latents, timesteps = noisy(seed)
    with torch.no_grad():
        return model.predict(latents, timesteps, model.embed([prompt]))


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Smooth and without symmetry, so that a turn or a mirror shows, also after JPEG."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    red, green = 255 * x / x.max(), 255 * y / y.max()
    blue = np.full_like(x, (40 + 37 * seed) % 256)
    return Image.fromarray(np.stack([red, green, blue], -1).round().astype(np.uint8))


def put(folder: Path, name: str, width: int = 64, height: int = 48, seed: int = 0, **saved: Any) -> Path:
    path = folder / name
    picture(width, height, seed).save(path, **saved)
    return path


def asked(**changes: Any) -> TrainingSettings:
    """Settings of a training; places that are not there, as nothing here goes to them."""
    values: dict[str, Any] = {
        "photos": Path("photos"),
        "base": Path("base.safetensors"),
        "out": Path("out"),
        "name": "test",
        "class_noun": "dog",
        "identifier": "ohwx",
    }
    return TrainingSettings(**{**values, **changes})


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of the channels, 0 to 255."""
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean())
