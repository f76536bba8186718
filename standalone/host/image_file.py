"""A finished image as the bytes of a file: in the format that was asked for, or else in one that can hold it.

Nothing that was generated is lost to a limit of its file format; what could not be written as wished is said.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin

from lib_methods.pictures.convert import to_rgb, to_rgba
from standalone.infotext import user_comment

PNG = ".png"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_WITH_EXIF = (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".tif", ".tiff")
_CANNOT = (ValueError, TypeError, KeyError, OverflowError, SystemError, struct.error)


@dataclass(frozen=True)
class ImageFile:
    """data: the file's bytes. extension: its ending, ".png" where the wanted format could not be used. text_is_beside:
    whether the infotext is not in it and belongs into a text file. note: a sentence about what is not as wished."""

    data: bytes
    extension: str
    text_is_beside: bool = False
    note: str = ""


def png(image: Image.Image, texts: Mapping[str, Any]) -> bytes:
    """A PNG of an image of any mode, with its texts; what no text may hold (lone surrogates) becomes "?"."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        text = writable(str(value))  # Latin-1 beyond ASCII could be UTF-8 as well
        add = info.add_text if text.isascii() else info.add_itxt
        add(key.encode("latin-1", "replace").decode("latin-1")[:79] or "?", text)
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else to_rgba(image)).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def writable(text: str) -> str:
    """The text with "?" in the place of what UTF-8 cannot write."""
    return text.encode("utf-8", "replace").decode("utf-8")


def encode(
    image: Image.Image, extension: str, infotext: str | None, texts: Mapping[str, Any], quality: int
) -> ImageFile:
    """The image in the format of `extension`.

    infotext: goes into the Exif comment of formats other than PNG; None where none is wanted. texts: all of a PNG's,
    the infotext among them. quality: of JPEG, WebP and AVIF, 1 to 100.
    """
    extension = extension.lower()
    if extension == PNG:
        return ImageFile(png(image, texts), PNG)
    name = Image.registered_extensions().get(extension)
    if name is None or name not in Image.SAVE:
        return ImageFile(png(image, texts), PNG, note=f'There is no image format "{extension.lstrip(".")}".')
    rgb = to_rgb(image)
    if infotext is None or extension in _WITH_EXIF:
        exif = None if infotext is None else user_comment.exif_of(writable(infotext))
        data = _saved(rgb, name, quality, exif)
        if data is not None:
            return ImageFile(data, extension)
    data = _saved(rgb, name, quality, None)
    if data is None:
        note = f"An image of {image.width}x{image.height} pixels cannot be saved as {name}."
        return ImageFile(png(image, texts), PNG, note=note)
    why = f"The infotext is too long for {name}." if extension in _WITH_EXIF else f"{name} files hold no infotext."
    return ImageFile(data, extension, text_is_beside=True, note=why)


def _saved(image: Image.Image, name: str, quality: int, exif: bytes | None) -> bytes | None:
    """The file; None where its format cannot hold the image, or not with this Exif."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name, quality=quality, **({} if exif is None else {"exif": exif}))
    except (OSError, *_CANNOT):  # in memory there is no disk to blame
        return None
    return buffer.getvalue()
