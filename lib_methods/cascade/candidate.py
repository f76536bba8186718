"""Images of the cascade as PNG files that say how they were made, so that a candidate can be taken up again later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lib_methods.cascade.settings import CONTROLS, CascadeSettings
from lib_methods.checks import SettingsError
from lib_methods.errors import UserError, reason
from lib_methods.files import replacing
from lib_methods.pictures.convert import ImageError, open_image, to_mask, to_rgb

KEY = "cascade"  # of the PNG's text that programs read
VERSION = 1
_LONGEST = 200_000  # characters of that text


@dataclass(frozen=True)
class Candidate:
    """An image of a stage, and all that it depends on.

    stage: 1, 2 or 3. settings: of the job, with this image's own seed. models: of the stages until here, by number:
    the folder's name and the digest of its UNet. thresholds: what was done, likewise. side: of stage I's usual images,
    which says how much stage II enlarges. source: the digest of the image that was changed, if one was.
    """

    image: Image.Image
    stage: int
    settings: CascadeSettings
    models: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, str] = field(default_factory=dict)
    side: int = 64
    source: str = ""

    def continued(self, settings: CascadeSettings) -> CascadeSettings:
        """The settings for going on with it: its own seed and, where the prompt is empty, its own in place of all that
        have their default."""
        own: dict[str, Any] = {}
        if not settings.prompt:
            written = [control for control in CONTROLS.controls if control.key is not None]
            left = [control.attribute for control in written if getattr(settings, control.attribute) == control.default]
            own = {name: getattr(self.settings, name) for name in left}
        return replace(settings, **{**own, "seed": self.settings.seed})

    def infotext(self) -> str:
        """What the WebUI's PNG Info shows."""
        asked = self.settings.stage(1)
        fields = {
            "Steps": str(asked.steps),
            "Sampler": asked.solver,
            "CFG scale": f"{asked.guidance:g}",
            "Seed": str(self.settings.seed),
            "Size": f"{self.image.width}x{self.image.height}",
            "Model": ", ".join(name.rpartition(" ")[0] for name in self.models.values()),
            "Cascade stage": str(self.stage),
            "Cascade threshold": self.thresholds.get("1", ""),
            "Cascade stage2 threshold": self.thresholds.get("2", ""),
            **CONTROLS.to_infotext(self.settings),
        }
        line = ", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items() if value)
        negative = f"\nNegative prompt: {self.settings.negative_prompt}" if self.settings.negative_prompt else ""
        return f"{self.settings.prompt}{negative}\n{line}"

    def data(self) -> str:
        """The same for programs, as JSON."""
        return json.dumps(
            {
                "version": VERSION,
                "stage": self.stage,
                "settings": asdict(self.settings),
                "models": dict(self.models),
                "thresholds": dict(self.thresholds),
                "side": self.side,
                "source": self.source,
                "size": list(self.image.size),
            },
            ensure_ascii=False,
        )

    def save(self, path: Path) -> None:
        """Whole or not at all. Raises UserError: the disk is full or cannot be written."""
        texts = PngInfo()
        texts.add_itxt("parameters", self.infotext())
        texts.add_itxt(KEY, self.data())
        encoded = BytesIO()
        self.image.save(encoded, "PNG", pnginfo=texts)
        try:
            with replacing(path) as file:
                file.write(encoded.getvalue())
        except OSError as error:
            raise UserError(f"{path.name} cannot be written. {reason(error)}") from error


def read_candidate(path: Path) -> Candidate:
    """The candidate of a PNG file. Raises UserError, which names the file: it is missing, no image, or carries no data
    of the cascade."""
    _check_there(path)
    try:
        opened = open_image(path, formats=("PNG",))
        image = to_rgb(opened)
        text = getattr(opened, "text", {}).get(KEY)
    except ImageError as error:
        raise UserError(f"{path.name} cannot be taken up again. {error}") from None
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise UserError(
            f"{path.name} carries no data of the cascade: another program made it or removed the data. Use it as the "
            "image to change instead."
        )
    try:
        data = json.loads(text)
        stage, side = data["stage"], data["side"]
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (stage, side))
        if not (whole and 1 <= stage <= 3 and 1 <= side <= 4096):
            raise ValueError("numbers")
        if list(image.size) != data["size"]:
            raise UserError(f"{path.name} was resized after it was made. Take up the original file.")
        known = {control.attribute for control in CONTROLS.controls}
        settings = CascadeSettings(**{name: value for name, value in data["settings"].items() if name in known})
        models, thresholds = (
            {str(number)[:2]: str(text)[:300] for number, text in data[name].items()}
            for name in ("models", "thresholds")
        )
        if settings.seed < 0:
            raise ValueError("seed")
        return Candidate(image, stage, settings, models, thresholds, side, str(data.get("source", ""))[:100])
    except SettingsError as error:
        raise UserError(f"{path.name} was made with settings that are not possible here. {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"The cascade's data in {path.name} is damaged. Use it as the image to change instead."
        ) from None


def newest(folder: Path) -> list[Path]:
    """The images in a run's folder, of each the one of its last stage."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*-stage[123].png")):
        found[file.name.partition("-")[0]] = file
    return list(found.values())


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in about [-1, 1] as 8-bit RGB images."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """8-bit RGB images of one size as pixels (B, 3, H, W) in [-1, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


def open_source(path: Path, mask: bool = False) -> Image.Image:
    """An image to change, or its mask. Raises UserError."""
    _check_there(path)
    try:
        opened = open_image(path)
        return to_mask(opened) if mask else to_rgb(opened)
    except ImageError as error:
        raise UserError(f"{path.name} cannot be used. {error}") from None


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path.name}. Check its path.")


def _quoted(value: Any) -> str:
    """As the WebUI quotes values with commas, colons and line breaks."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
