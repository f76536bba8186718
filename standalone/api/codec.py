"""Images as base64 text, in and out."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from .errors import BadRequest

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 64 * 1024 * 1024
_DATA_URL = re.compile(r"^data:[a-z0-9.+/-]*(?:;[^,;]*)*;base64,", re.IGNORECASE)


def decode_bytes(text: str, what: str = "image") -> bytes:
    """The bytes of base64 text, with or without a data URL's head. BadRequest with a sentence."""
    if text[:8].lower().startswith(("http://", "https:/")):
        raise BadRequest(f"{what}: links are not followed here; send the image itself as base64.", 400)
    head = _DATA_URL.match(text)
    payload = re.sub(r"\s+", "", text[head.end() :] if head else text)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{what}: this is not base64 text of an image.", 400) from None


def decode_image(text: str, what: str = "image") -> Image.Image:
    """The image in base64 text, upright, with its texts in `.info`. BadRequest with a sentence.

    PNG, JPEG, WebP, BMP, GIF and TIFF of up to 64 megapixels are read.
    """
    try:
        image = Image.open(io.BytesIO(decode_bytes(text, what)), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadRequest(f"{what}: {image.width}x{image.height} is too large; 64 megapixels are the limit.", 400)
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError):
        raise BadRequest(f"{what}: this is not an image that can be read.", 400) from None
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF orientation says, keeping its texts."""
    turned = ImageOps.exif_transpose(image) or image
    turned.info = {**image.info, **turned.info}
    return turned


def png_bytes(image: Image.Image) -> bytes:
    """A PNG with the texts of `image.info` (the infotext is `parameters`)."""
    texts = PngImagePlugin.PngInfo()
    for key, value in image.info.items():
        if isinstance(key, str) and isinstance(value, str):
            texts.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=texts)
    return buffer.getvalue()


def encode_image(image: Image.Image) -> str:
    """`image` as base64 text of a PNG that carries its texts."""
    return base64.b64encode(png_bytes(image)).decode("ascii")
