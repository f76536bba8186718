"""Reads picture files of every kind that people have: photos as RGB, masks as grey."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.pictures.convert import DECODE_ERRORS, MAX_PIXELS, MAX_SIDE, ImageError, to_mask, to_rgb

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "HEIF", "JXL")
"""What is decoded where Pillow can: plain raster formats, and none that starts another program or reads other files."""
RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw", ".nef", ".nrw", ".orf"),
    *(".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_avif": "", "pillow_jxl": ""}
_LARGE_JPEG, _LARGE_SIDE = 40_000_000, 8192  # pixels; above it a JPEG is decoded at a fraction
_LARGEST_JPEG = 178_000_000  # pixels; a JPEG is decoded at a half, a quarter or an eighth of its size
_LARGEST_FILE = 256 * 2**20
_TGA_ENDINGS = (".tga", ".icb", ".vda", ".vst")  # TGA has no mark of its own: any junk may pass for one
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on the picture lies on its side

_OR_JPEG = "Install it, or save them as JPEG or PNG."
_RAW = "Raw camera files must be developed first: export them as JPEG."
_LAYERS = "These are documents of a painting program: export them as PNG."
_VIDEO = "Videos cannot be used: save single frames as PNG."
FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), f"HEIC needs the package pillow-heif. {_OR_JPEG}"),
    ".avif": f"AVIF needs a newer Pillow or the package pillow-avif-plugin. {_OR_JPEG}",
    ".jxl": f"JPEG XL needs the package pillow-jxl-plugin. {_OR_JPEG}",
    **dict.fromkeys(RAW, _RAW),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".clip"), _LAYERS),
    **dict.fromkeys((".mp4", ".mov", ".mkv", ".avi"), _VIDEO),
    ".svg": "SVG files are vector graphics: export them as PNG.",
}
"""Endings of pictures that may not be readable here, and what to do about it."""


def endings() -> set[str]:
    """Those of the formats that are read here, in lower case."""
    _use_plugins()
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS} | {".jfif"}


@cache
def _use_plugins() -> None:
    """Lets Pillow read what packages that happen to be installed can."""
    Image.init()
    for module, register in _PLUGINS.items():
        with suppress(Exception):  # not installed, or for another Pillow
            plugin = import_module(module)
            if register:
                getattr(plugin, register)()


def _open(path: Path) -> Image.Image:
    _use_plugins()
    if path.suffix.lower() in RAW:
        raise OSError("the picture in it is a thumbnail")  # most are TIFF files to Pillow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked before a pixel is read
        known = [name for name in FORMATS if name in Image.OPEN]
        if path.suffix.lower() not in _TGA_ENDINGS:
            known.remove("TGA")
        return Image.open(path, formats=known)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height as the picture stands upright. Raises `DreamBoothError`."""
    try:
        with _open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except DECODE_ERRORS:
        raise DreamBoothError(f'"{path.name}" is damaged.') from None


def prepared(path: Path) -> Image.Image:
    """The opened file, of a size that may be decoded."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DreamBoothError(f'"{path.name}" is larger than {_LARGEST_FILE // 2**20} MiB.')
        image = _open(path)
    except Image.DecompressionBombError:
        raise DreamBoothError(f'"{path.name}" has too many pixels. Scale it down first.') from None
    except DECODE_ERRORS:
        raise DreamBoothError(f'"{path.name}" cannot be read as an image.') from None
    wanted = image.size
    if image.format in ("JPEG", "MPO") and image.width * image.height <= _LARGEST_JPEG:
        while wanted[0] * wanted[1] > _LARGE_JPEG or max(wanted) > _LARGE_SIDE:
            wanted = (wanted[0] // 2, wanted[1] // 2)
        if wanted != image.size:
            image.draft(image.mode, wanted)
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        size = f"{image.width}x{image.height}"
        image.close()
        raise DreamBoothError(f'"{path.name}" has too many pixels ({size}). Scale it down first.')
    return image


def decode(path: Path) -> Image.Image:
    """See `folder.read_photo`."""
    with prepared(path) as image:
        return _converted(image, path)


def read_small(path: Path, side: int) -> Image.Image:
    """As `decode`, at most `side` pixels wide and high; a large JPEG is decoded at a fraction of its size."""
    with prepared(path) as image:
        image.draft("RGB", (side, side))
        small = _converted(image, path)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _converted(image: Image.Image, path: Path) -> Image.Image:
    try:
        return to_rgb(image)
    except ImageError:
        raise DreamBoothError(f'"{path.name}" is damaged or incomplete.') from None


def decode_mask(path: Path) -> Image.Image:
    """See `folder.read_mask`."""
    with prepared(path) as image:
        try:
            return to_mask(image)
        except ImageError:
            raise DreamBoothError(f'The mask "{path.name}" is damaged or incomplete.') from None
