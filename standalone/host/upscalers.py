"""Upscalers: of pixels, and the ways in which Hires. fix enlarges latents."""

from __future__ import annotations

from typing import Any

from PIL import Image

from standalone.engine import names

LANCZOS = Image.Resampling.LANCZOS
NEAREST = Image.Resampling.NEAREST


def size_after(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The size of an image of `size` after an upscaler has enlarged it: multiples of 8 pixels."""
    # 49 * (512 / 49) may be a little less than 512
    width, height = (max(8, int(side * scale + 1e-6) // 8 * 8) for side in size)
    return width, height


class Upscaler:
    """Base class: `do_upscale` makes the image larger, `upscale` brings it to the requested size."""

    name: str = ""
    scalers: list[UpscalerData]

    def __init__(self, create_dirs: bool = False) -> None:
        self.scale: float = 1.0
        self.scalers = [UpscalerData(self.name, None, self)]

    def do_upscale(self, img: Image.Image, selected_model: str | None = None) -> Image.Image:
        return img

    def upscale(self, img: Image.Image, scale: float, selected_model: str | None = None) -> Image.Image:
        """`img` enlarged by `scale`, to a multiple of 8 pixels."""
        self.scale = scale
        size = size_after(img.size, scale)
        img = self.do_upscale(img, selected_model)
        return img if img.size == size else img.resize(size, resample=LANCZOS)


class UpscalerData:
    """An upscaler as the list of choices has it."""

    def __init__(
        self, name: str, path: str | None, upscaler: Upscaler | None = None, scale: int = 4, model: object = None
    ) -> None:
        self.name = name
        self.data_path = path
        self.local_data_path = path
        self.scaler = upscaler
        self.scale = scale
        self.model = model

    def __repr__(self) -> str:
        return f"<UpscalerData name={self.name} scale={self.scale}>"


class UpscalerNone(Upscaler):
    name = "None"

    def __init__(self, dirname: str | None = None) -> None:
        super().__init__()


class UpscalerLanczos(Upscaler):
    name = "Lanczos"
    resample = LANCZOS

    def __init__(self, dirname: str | None = None) -> None:
        super().__init__()

    def do_upscale(self, img: Image.Image, selected_model: str | None = None) -> Image.Image:
        size = max(1, int(img.width * self.scale)), max(1, int(img.height * self.scale))
        return img.resize(size, resample=self.resample)


class UpscalerNearest(UpscalerLanczos):
    name = "Nearest"
    resample = NEAREST


latent_upscale_default_mode = "Latent"
latent_upscale_modes: dict[str, dict[str, Any]] = names.LATENT_UPSCALERS
# in the WebUI's order
sd_upscalers: list[UpscalerData] = [
    scaler for upscaler in (UpscalerNone(), UpscalerLanczos(), UpscalerNearest()) for scaler in upscaler.scalers
]


def find_upscaler(name: str) -> UpscalerData | None:
    """The upscaler of images with this name, in any case; None when there is no such upscaler."""
    return names.find(name, {upscaler.name: upscaler for upscaler in sd_upscalers})


def find_hires_upscaler(name: str) -> str:
    """The name of the upscaler of latents or images for Hires. fix that `name` means, in any case. Raises UserError."""
    known = {text: text for text in (*latent_upscale_modes, *(upscaler.name for upscaler in sd_upscalers))}
    found = names.find(name, known)
    if found is None:
        raise names.unknown("upscaler", name, known)
    return found
