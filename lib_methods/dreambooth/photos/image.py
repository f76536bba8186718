"""Image files of every kind that people have, decoded, and brought to the size of an aspect-ratio bucket."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lib_methods.errors import UserError
from lib_methods.pictures.convert import DECODE_ERRORS, MAX_PIXELS, MAX_SIDE, ImageError, to_mask, to_rgb
from lib_methods.pictures.fit import crop_to_fill, to_tensor

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
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on the image lies on its side

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
"""Endings of images that may not be readable here, and what to do about it."""


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
        raise OSError("the image in it is a thumbnail")  # most are TIFF files to Pillow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked before a pixel is read
        known = [name for name in FORMATS if name in Image.OPEN]
        if path.suffix.lower() not in _TGA_ENDINGS:
            known.remove("TGA")
        return Image.open(path, formats=known)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height as the image stands upright. Raises `UserError`."""
    try:
        with _open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except DECODE_ERRORS:
        raise UserError(f'"{path.name}" is damaged.') from None


def prepared(path: Path) -> Image.Image:
    """The opened file, of a size that may be decoded."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f'"{path.name}" is larger than {_LARGEST_FILE // 2**20} MiB.')
        image = _open(path)
    except Image.DecompressionBombError:
        raise UserError(f'"{path.name}" has too many pixels. Scale it down first.') from None
    except DECODE_ERRORS:
        raise UserError(f'"{path.name}" cannot be read as an image.') from None
    wanted = image.size
    if image.format in ("JPEG", "MPO") and image.width * image.height <= _LARGEST_JPEG:
        while wanted[0] * wanted[1] > _LARGE_JPEG or max(wanted) > _LARGE_SIDE:
            wanted = (wanted[0] // 2, wanted[1] // 2)
        if wanted != image.size:
            image.draft(image.mode, wanted)
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        size = f"{image.width}x{image.height}"
        image.close()
        raise UserError(f'"{path.name}" has too many pixels ({size}). Scale it down first.')
    return image


def decode(path: Path) -> Image.Image:
    """See `read_photo`."""
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
        raise UserError(f'"{path.name}" is damaged or incomplete.') from None


def decode_mask(path: Path) -> Image.Image:
    """See `read_mask`."""
    with prepared(path) as image:
        try:
            return to_mask(image)
        except ImageError:
            raise UserError(f'The mask "{path.name}" is damaged or incomplete.') from None


@dataclass(frozen=True)
class Photo:
    """An image of the subject.

    caption: the text of the file beside it, None where there is none. mask_path: the image that is white where the
    subject is. width, height: in pixels, as the image stands upright.
    """

    path: Path
    caption: str | None
    mask_path: Path | None
    width: int
    height: int
    caption_path: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes, which are read once. Raises `UserError` where they no longer can be."""
        return _sha256(self.path)

    @cached_property
    def mask_sha256(self) -> str:
        """The same of the mask; "" without one."""
        return "" if self.mask_path is None else _sha256(self.mask_path)

    def hold(self, image: Image.Image) -> None:
        """Keeps the decoded image for `read_photo` until `let_go`."""
        self.__dict__["_held"] = image

    def let_go(self) -> None:
        self.__dict__.pop("_held", None)


def photos_digest(photos: Sequence[Photo]) -> str:
    """SHA-256 over the photos' bytes, captions and masks, as 64 hex digits; names and places do not count."""
    digest = hashlib.sha256()
    for photo in photos:
        parts = [photo.sha256, photo.mask_sha256]
        parts.append(hashlib.sha256((photo.caption or "").encode("utf-8", "replace")).hexdigest())
        digest.update((" ".join(parts) + ";").encode("ascii"))
    return digest.hexdigest()


def open_photo(path: Path) -> Photo:
    """An image without caption and mask; its pixels are not read yet. Raises `UserError` where it is none."""
    with prepared(path):
        pass
    return Photo(path, None, None, *upright_size(path))


def read_photo(photo: Photo) -> Image.Image:
    """The image as RGB: upright, transparent parts white, 8 bits a channel, an animation's first frame.

    JPEGs of more than 40 megapixels come at a fraction of their size. Raises `UserError` where it can no longer
    be read.
    """
    held: Image.Image | None = photo.__dict__.get("_held")
    return decode(photo.path) if held is None else held


def read_mask(photo: Photo) -> Image.Image | None:
    """The photo's mask in grey, upright, in its own size: white is the subject. None if there is none.

    Where a mask has transparent parts, what is opaque is the subject. Raises `UserError` as `read_photo` does.
    """
    return None if photo.mask_path is None else decode_mask(photo.mask_path)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise UserError(f'"{path.name}" can no longer be read.') from None


Size = tuple[int, int]
"""(width, height) in pixels."""

_MUCH_CUT = 1 / 3


def step_for(resolution: int) -> int:
    """What the sides of buckets are multiples of: an eighth of the resolution, between 8 and 64, a power of two."""
    return max(8, min(64, 2 ** int(math.log2(max(resolution, 8) / 8))))


@lru_cache(maxsize=64)
def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """The sizes that there are: sides in multiples of `step_for` from half to twice the resolution, as large as fits
    into the area of a square of that resolution. From tall to wide; the square (of the next lower multiple) is one."""
    step = step_for(resolution)
    if resolution < step:
        raise ValueError("the resolution must be at least one step")
    low, high = max(step, resolution // 2 // step * step), max(step, resolution * 2 // step * step)
    side, sizes = resolution // step * step, set()
    sizes.add((side, side))
    for long in range(side + step, high + 1, step):
        short = resolution * resolution // long // step * step
        if short >= low:
            sizes |= {(long, short), (short, long)}
    return tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))


def bucket_for(width: int, height: int, resolution: int) -> Size:
    """The size (width, height) in pixels that an image is brought to: the one nearest to its aspect ratio, and of two
    alike the larger. The area is about resolution x resolution and never more: all buckets need the same memory."""
    if width < 1 or height < 1:
        raise ValueError("width and height must be positive")
    aspect = math.log(width / height)

    def distance(size: Size) -> tuple[float, int, Size]:
        return round(abs(math.log(size[0] / size[1]) - aspect), 9), -size[0] * size[1], size

    return min(bucket_sizes(resolution), key=distance)


def fit(image: Image.Image, bucket: Size) -> Tensor:
    """An image at the size of its bucket, (3, H, W) in [-1, 1]: the largest centred part of that aspect, resized."""
    return to_tensor(crop_to_fill(image, *bucket))


def fit_mask(mask: Image.Image, width: int, height: int, bucket: Size) -> Tensor:
    """The mask (1, H, W) in [0, 1] of an image of `width` by `height` that `fit` brings into a bucket."""
    scale = max(bucket[0] / width, bucket[1] / height)
    whole = max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))
    grey = mask.convert("L").resize(whole, Image.Resampling.BILINEAR)
    return (to_tensor(crop_to_fill(grey, *bucket, Image.Resampling.BILINEAR))[:1] + 1) / 2


def micro_conditioning(width: int, height: int, bucket: Size) -> Tensor:
    """SDXL's six numbers for an image of `width` by `height` that `fit` brings into a bucket, fp32 (6,): original
    height and width, top and left of the crop, target height and width (Podell et al. 2023, section 2.2).

    The crop is counted in pixels of the resized image.
    """
    scale = max(bucket[0] / width, bucket[1] / height)
    left, top = ((width * scale - bucket[0]) / 2, (height * scale - bucket[1]) / 2)
    numbers = [height, width, int(top + 1e-6), int(left + 1e-6), bucket[1], bucket[0]]
    return torch.tensor(numbers, dtype=torch.float32)


def fit_warnings(photos: Sequence[Photo], buckets: Sequence[Size]) -> list[str]:
    """A sentence for each photo that must be enlarged for its bucket, or of which much is cut off."""
    notes = []
    for photo, (width, height) in zip(photos, buckets):
        scale = max(width / photo.width, height / photo.height)
        if scale > 1:
            notes.append(
                f'"{photo.path.name}" is small ({photo.width}x{photo.height}): it is upscaled {scale:.1f} times to '
                f"{width}x{height}, and the model will learn the blur. Use a larger image if you can."
            )
        lost = 1 - width * height / (photo.width * photo.height * scale * scale)
        if lost > _MUCH_CUT:
            notes.append(
                f'"{photo.path.name}" is long and narrow or is cut to a square: {round(100 * lost)} % of it are cut '
                "off at its ends. Cut it yourself if the subject is not in the middle."
            )
    return notes
