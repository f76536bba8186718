"""Every image that comes in, as 8-bit RGB, RGBA or mask: one rule for the page, the API, the command line, the store
and training photos.

`open_image` reads the header alone and refuses what is too large; nothing is decoded before one of the `to_` functions
is called.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageCms

from lib_methods.checks import SettingsError
from lib_methods.pictures import kinds

MAX_SIDE = 16_384
MAX_PIXELS = 2**26
MAX_TOTAL_PIXELS = 2**27
"""Of one image, and of all images of one request."""
MAX_ENCODED_BYTES = 192 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What is decoded: Pillow's plain raster formats, and none that starts another program (EPS) or reads other files."""

ImageSource: TypeAlias = Image.Image | bytes | str | Path
"""An image as PIL image, as the bytes of an image file, as base64 text with or without a data URL in front, or a
file."""

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
"""Pillow has no common base class for what its decoders raise at broken files; these are what fuzzing them brings
up."""

_DATA_URL = re.compile(
    r"data:(?:image/[\w.+-]+|application/octet-stream)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE
)
_URL_SAFE = str.maketrans("-_", "+/")  # base64 of JWT and of file names
_SHORTEST_FILE = 24  # bytes; no format stores an image in less
_NOT_BASE64 = (
    "The image cannot be read: send it as base64 text or as a data URL. File names, links and paths are not accepted."
)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_LEVELS = (255, 65_535, 2**24 - 1, 2**31 - 1, 2**32 - 1)  # what deep grey may count as white
_ROWS_AT_ONCE = 2**20  # pixels; so that a deep image needs no copy of itself in floats
_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # Pillow's names, and ICC's


class ImageError(SettingsError):
    """An image that cannot be read, found or kept; the message says why in the user's words."""


def open_image(
    source: ImageSource,
    *,
    formats: Iterable[str] = FORMATS,
    max_side: int = MAX_SIDE,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """An image whose header is read, and whose pixels are not.

    max_side, max_pixels: what is allowed for one image. Raises `ImageError`: no image, of none of `formats`, or too
    large.
    """
    if isinstance(source, Image.Image):
        check_size(source.width, source.height, max_side, max_pixels)
        return source
    formats = tuple(formats)
    file: Any = source
    if isinstance(source, (str, bytes, bytearray, memoryview)):
        data = decode_base64(source) if isinstance(source, str) else bytes(source)
        if not data:
            raise ImageError("The image is empty.")
        if len(data) > MAX_ENCODED_BYTES:
            raise ImageError(f"The image file is larger than {MAX_ENCODED_BYTES // 2**20} MiB.")
        file = io.BytesIO(data)
    elif not isinstance(source, Path):
        raise ImageError("Send the image as base64 text or as a data URL.")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            image = Image.open(file, formats=[name for name in formats if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise ImageError("The image has too many pixels. Make it smaller.") from None
    except DECODE_ERRORS:
        unknown = f"The image cannot be read: it is damaged, or not one of {', '.join(formats)}."
        raise ImageError(kinds.told(file) or unknown) from None
    try:
        check_size(image.width, image.height, max_side, max_pixels)
    except ImageError:
        image.close()
        raise
    return image


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text, with or without a data URL's head. Raises `ImageError`."""
    if len(text) > MAX_ENCODED_BYTES * 4 // 3 + 1024:
        raise ImageError(f"The image file is larger than {MAX_ENCODED_BYTES // 2**20} MiB.")
    match = _DATA_URL.match(text)
    if match is None and text[:5].lower() == "data:":
        raise ImageError("The data URL is not an image: it must begin with data:image/…;base64,")
    if not text.strip():
        raise ImageError("The image is empty.")
    body = "".join(text[match.end() if match else 0 :].split()).translate(_URL_SAFE)
    body = unquote(body) if "%" in body else body
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(_NOT_BASE64) from None
    if len(data) < _SHORTEST_FILE and match is None:  # "/etc/passwd" is good base64
        raise ImageError(_NOT_BASE64)
    return data


def check_size(width: int, height: int, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `ImageError` for an image that is empty or too large."""
    if width < 1 or height < 1:
        raise ImageError("The image is empty.")
    if width > max_side or height > max_side or width * height > max_pixels:
        raise ImageError(
            f"The image is too large ({width}x{height}): at most {max_side} pixels a side and "
            f"{max_pixels // 10**6} megapixels are accepted."
        )


def check_total(images: Iterable[Image.Image], most: int = MAX_TOTAL_PIXELS) -> None:
    """Raise `ImageError` where the images of one request have more than `most` pixels together."""
    total = sum(image.width * image.height for image in images)
    if total > most:
        raise ImageError(
            f"The images of this request are too large together ({total // 10**6} megapixels): at most "
            f"{most // 10**6} megapixels are accepted. Send smaller or fewer images."
        )


def to_rgba(image: Image.Image, *, with_texts: bool = False) -> Image.Image:
    """An image of any mode as a new 8-bit image: RGBA where a part is transparent, else RGB.

    It stands upright (Exif), its colours are sRGB (embedded ICC profile), it carries no metadata. An animation gives
    the frame that is open, the first one after `open_image`. Deep grey (16 and 32 bits, floats) is scaled, not
    clipped: integers of 16 bits by 65535; others by 1, 255, 65535 or more, whichever their largest value calls for; NaN
    is black. with_texts: its texts and Exif (without the orientation) stay in `info`, for readers of infotexts.
    Raises `ImageError` where it cannot be decoded.
    """
    plain = _plain(image, managed=True)
    if with_texts:
        plain.info.update(_texts(image))
    return plain


def to_rgb(image: Image.Image, background: tuple[int, ...] = (255, 255, 255)) -> Image.Image:
    """As `to_rgba`, flattened: transparent parts take the colour `background`."""
    plain = to_rgba(image)
    if plain.mode == "RGBA":
        plain = Image.alpha_composite(Image.new("RGBA", plain.size, (*background[:3], 255)), plain).convert("RGB")
    return plain


def to_mask(image: Image.Image) -> Image.Image:
    """What an image says as a mask, in 8-bit grey (L), upright: its alpha channel where a part is transparent, else its
    brightness. Raises `ImageError` where it cannot be decoded."""
    plain = _plain(image, managed=False)  # a mask's numbers count, not what a screen makes of them
    return plain.getchannel("A") if plain.mode == "RGBA" else plain.convert("L")


def _plain(image: Image.Image, managed: bool) -> Image.Image:
    check_size(image.width, image.height, 2**31, 2**62)
    try:
        _scale_transparency(image)
        image.load()
        alpha = _alpha(image)
        plain = _colours(image, managed)
        if alpha is not None:
            plain.putalpha(alpha)
        turn = _UPRIGHT.get(_orientation(image))
        if turn is not None:
            plain = plain.transpose(turn)
    except DECODE_ERRORS:
        raise ImageError("The image cannot be decoded: its file is damaged or incomplete.") from None
    plain.info = {}
    return plain


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except DECODE_ERRORS:  # broken metadata leaves the pixels as they are
        return 1


def _texts(image: Image.Image) -> dict[str, Any]:
    texts: dict[str, Any] = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    if isinstance(comment := image.info.get("comment"), bytes):
        texts["comment"] = comment
    try:
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        if len(exif):
            texts["exif"] = exif.tobytes()
    except DECODE_ERRORS:
        pass
    return texts


def _alpha(image: Image.Image) -> Image.Image | None:
    """The alpha channel, or None where all is opaque."""
    colour = image.info.get("transparency")
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = image.getchannel("A")
    elif image.mode in ("RGBa", "La"):
        alpha = image.getchannel("a")
    elif colour is None and not (image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA"):
        return None
    elif image.mode.startswith("I") and isinstance(colour, int):
        alpha = Image.fromarray(np.where(np.asarray(image) == colour, 0, 255).astype(np.uint8))
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _colours(image: Image.Image, managed: bool) -> Image.Image:
    """The colours without alpha, RGB, always a new image."""
    icc = image.info.get("icc_profile") if managed else None
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    elif image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode not in _COLOUR_SPACES:
        image = image.convert("RGB")
    shown = _as_srgb(image, icc) if isinstance(icc, bytes) else None
    return image.convert("RGB") if shown is None else shown


def _grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as 8 bits: Pillow's own conversion clips it to white instead of scaling."""
    values = np.asarray(image)
    if values.dtype.itemsize == 4 and values.dtype.kind == "i" and _is_unsigned_tiff(image):
        values = values.view(np.uint32)
    step = max(1, _ROWS_AT_ONCE // image.width)
    parts = [values[row : row + step] for row in range(0, len(values), step)]
    top = _white(max(float(np.max(part, initial=0.0, where=np.isfinite(part))) for part in parts), image, values.dtype)
    grey = np.empty(values.shape, np.uint8)
    for row, part in zip(range(0, len(values), step), parts):
        scaled = np.nan_to_num(part.astype(np.float64) / top, nan=0.0, posinf=1.0, neginf=0.0)
        grey[row : row + step] = (scaled.clip(0.0, 1.0) * 255.0).round()
    return Image.fromarray(grey)


def _white(largest: float, image: Image.Image, kind: np.dtype[Any]) -> float:
    """The value that is white."""
    if kind.itemsize == 2 or image.format == "PNG":
        return 65_535.0
    if kind.kind == "f" and largest <= 2.0:  # 0 to 1, and what sharpening adds
        return 1.0
    overshoot = 1.25 if kind.kind == "f" else 1.0
    return float(next((level for level in _GREY_LEVELS if largest <= level * overshoot), largest))


def _is_unsigned_tiff(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(339, (1,)) in (1, (1,))  # SampleFormat


def _as_srgb(image: Image.Image, icc: bytes) -> Image.Image | None:
    """The image in sRGB; None where it is already, or the profile is damaged or of another kind of image."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space.strip() != _COLOUR_SPACES.get(image.mode):
            return None
        if "srgb" in (ImageCms.getProfileDescription(profile) or "").lower():
            return None
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, *DECODE_ERRORS):
        return None


def _scale_transparency(image: Image.Image) -> None:
    """Makes a PNG's transparent colour (tRNS) that of the decoded pixels: the file counts in its own bit depth, known
    until it is decoded."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or not (tile := getattr(image, "tile", None)) or not isinstance(colour, (int, tuple)):
        return
    raw = tile[0][3]
    raw = raw[0] if isinstance(raw, tuple) else raw
    bits = {"1": 1, "L;2": 2, "L;4": 4}.get(raw, 8)
    if isinstance(colour, int) and bits < 8 and colour < 2**bits:
        image.info["transparency"] = colour * 255 // (2**bits - 1)
    elif raw == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
