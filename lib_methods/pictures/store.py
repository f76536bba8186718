"""Pictures on disk, named by what they show: one folder of PNG files, each named by the hash of its pixels.

A picture is known by its id alone: the SHA-256 of its size and RGB pixels as 64 hex digits. An id is never a path and
a path is never an id, so no request, preset or infotext can name another file of the machine.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import struct
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from lib_methods.checks import SettingsError
from lib_methods.files import replacing

MAX_SIDE = 8192
MAX_PIXELS = 40_000_000
MAX_ENCODED_BYTES = 64 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded: Pillow's plain raster formats, and none that starts another program (EPS) or reads other files."""

ImageSource: TypeAlias = Image.Image | bytes | str
"""A picture as PIL image, as the bytes of an image file, or as base64 text with or without a data URL in front."""

_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_BACKGROUND = (255, 255, 255)
_SHORTEST_FILE = 24  # bytes; no format stores a picture in less
_UNREADABLE_TEXT = (
    "The picture cannot be read: send it as base64 text, as a data URL, or as the 64-digit hash of a stored one. "
    "File names and paths are not accepted."
)
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


class StoreError(SettingsError):
    """A picture that cannot be read, found or kept; the message says why in the user's words."""


def is_image_id(text: object) -> bool:
    """Whether `text` has the form of an image id (it may still be unknown)."""
    return isinstance(text, str) and _IMAGE_ID.fullmatch(text) is not None


def image_id(image: Image.Image) -> str:
    """The id of an RGB picture: SHA-256 over "WIDTHxHEIGHT:" and its pixels, row by row, 3 bytes each; 64 hex
    digits."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode("ascii"))
    digest.update(image.tobytes())
    return digest.hexdigest()


class ImageStore:
    """Pictures in `folder`, which is made when the first one is added. Safe to use from several threads and
    processes.

    Every method that takes an id raises `StoreError` at anything that is not one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def add(self, source: ImageSource) -> str:
        """Keep a picture and return its id; one that is there already is not written again.

        The picture is turned upright (EXIF), transparent parts become white, deeper channels become 8 bits.

        Raises:
            StoreError: not a readable picture, or larger than 8192 pixels on a side or 40 megapixels.
        """
        image = to_rgb(source if isinstance(source, Image.Image) else _decode(source))
        name = image_id(image)
        if not self.exists(name):
            self._write(name, image)
        return name

    def load(self, name: str) -> Image.Image:
        """The picture with this id, RGB.

        Raises:
            StoreError: the id is unknown, or the file's pixels are no longer those that the id stands for.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"The picture {name[:8]}… is not on this machine. Add it again.") from None
        except OSError:
            raise StoreError(f"The picture {name[:8]}… cannot be read from the disk.") from None
        try:
            image = to_rgb(_open(data))
        except StoreError:
            image = None
        if image is None or image_id(image) != name:
            raise StoreError(f"The file of the picture {name[:8]}… is damaged. Remove it and add it again.")
        return image

    def exists(self, name: str) -> bool:
        """Whether a picture with this id is there."""
        return self.path(name).is_file()

    def delete(self, name: str) -> bool:
        """Remove a picture from the disk; False if there was none."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            return False
        except OSError:
            raise StoreError(f"The picture {name[:8]}… cannot be deleted just now.") from None
        return True

    def list(self) -> tuple[str, ...]:
        """The ids of all pictures, the newest first."""
        found: list[tuple[float, str]] = []
        try:
            entries = list(os.scandir(self.folder))
        except OSError:  # no folder yet: nothing was added
            return ()
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix == ".png" and is_image_id(stem):
                try:
                    found.append((entry.stat().st_mtime, stem))
                except OSError:  # deleted since scandir
                    continue
        return tuple(stem for _, stem in sorted(found, key=lambda item: (-item[0], item[1])))

    def path(self, name: str) -> Path:
        """The file of the picture with this id, whether it is there or not."""
        if not is_image_id(name):
            raise StoreError("A picture is named by its 64-digit hash, not by a file name or path.")
        return self.folder / f"{name}.png"

    def _write(self, name: str, image: Image.Image) -> None:
        """Write to a file of its own, then rename: a reader sees the whole picture or none."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(name), shared=True) as file:
                image.save(file, format="PNG", compress_level=4)
        except OSError:
            # Windows refuses to replace a file that another thread is reading; then the same pixels are in place
            # already.
            if not self.exists(name):
                raise StoreError("The picture cannot be saved: the disk is full or the folder is read-only.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as a new 8-bit RGB picture without metadata: upright, flattened on white.

    Raises:
        StoreError: too large, or it cannot be decoded.
    """
    _check_size(image.width, image.height)
    try:
        upright: Image.Image = ImageOps.exif_transpose(image) or image
        if upright.mode.startswith("I") or upright.mode == "F":
            upright = _to_eight_bits(upright)
        if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            flat = Image.new("RGBA", rgba.size, (*_BACKGROUND, 255))
            upright = Image.alpha_composite(flat, rgba)
        rgb = upright.convert("RGB")
        return Image.frombytes("RGB", rgb.size, rgb.tobytes())
    except DECODE_ERRORS:
        raise StoreError("The picture cannot be decoded: its file is damaged or cut short.") from None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of 16 or 32 bits: Pillow's own conversion clips them to white instead of scaling."""
    values = np.asarray(image, dtype=np.float64)
    top = (
        1.0
        if image.mode == "F" and values.max(initial=0.0) <= 1.0
        else 255.0
        if values.max(initial=0.0) <= 255
        else 65535.0
    )
    scaled = np.nan_to_num(values / top, nan=0.0, posinf=1.0, neginf=0.0)
    return Image.fromarray((scaled.clip(0.0, 1.0) * 255.0).round().astype(np.uint8))


def _decode(source: bytes | str) -> Image.Image:
    if isinstance(source, str):
        data = _from_base64(source)
        if len(data) < _SHORTEST_FILE and source[:5] != "data:":  # "/etc/passwd" is good base64
            raise StoreError(_UNREADABLE_TEXT)
        return _open(data)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise StoreError("A picture has to be sent as base64 text, as a data URL, or as the hash of a stored one.")
    return _open(bytes(source))


def _from_base64(text: str) -> bytes:
    if len(text) > MAX_ENCODED_BYTES * 4 // 3 + 1024:
        raise StoreError(f"The picture's file is larger than {MAX_ENCODED_BYTES // 2**20} MiB.")
    match = _DATA_URL.match(text)
    if match is None and text[:5].lower() == "data:":
        raise StoreError("The data URL does not hold a picture: it has to start with data:image/…;base64,")
    body = "".join(text[match.end() if match else 0 :].split())
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise StoreError(_UNREADABLE_TEXT) from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise StoreError("The picture is empty.")
    if len(data) > MAX_ENCODED_BYTES:
        raise StoreError(f"The picture's file is larger than {MAX_ENCODED_BYTES // 2**20} MiB.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except DECODE_ERRORS:
        raise StoreError(f"The picture cannot be read: it is none of {', '.join(FORMATS)}, or it is damaged.") from None
    _check_size(image.width, image.height)  # before a pixel is decoded
    return image


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise StoreError("The picture is empty.")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise StoreError(
            f"The picture is too large ({width}x{height}): at most {MAX_SIDE} pixels a side, "
            f"and {MAX_PIXELS // 10**6} megapixels."
        )
