"""Images as base64 text, in and out."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping

from PIL import Image

from lib_methods.pictures.convert import ImageError, check_total, open_image, to_rgba
from standalone.host import images

from .errors import BadRequest

_CHECKING = threading.Lock()  # images are large: only one request's are decoded for a check at a time


def open_encoded(texts: Mapping[str, str]) -> dict[str, Image.Image]:
    """The images of one request, by the names of their fields, with only the headers read. BadRequest with a sentence.

    See `convert.open_image` and `convert.check_total` for what is accepted.
    """
    opened = {}
    for name, text in texts.items():
        try:
            opened[name] = open_image(text)
        except ImageError as error:
            raise BadRequest(f"{name}: {error}", 400) from None
    try:
        check_total(opened.values())
    except ImageError as error:
        raise BadRequest(str(error), 413) from None
    return opened


def check_encoded(texts: Mapping[str, str]) -> dict[str, Image.Image]:
    """As `open_encoded`, and all can be decoded to their end; no decoded copy is kept while the job waits."""
    opened = open_encoded(texts)
    for name, text in texts.items():
        with _CHECKING:
            decode_opened(open_image(text), name)
    return opened


def decode_opened(image: Image.Image, name: str) -> Image.Image:
    """The opened image as `convert.to_rgba` gives it, with its texts in `info`. BadRequest with a sentence."""
    try:
        return to_rgba(image, with_texts=True)
    except ImageError as error:
        raise BadRequest(f"{name}: {error}", 400) from None


def png_bytes(image: Image.Image) -> bytes:
    """A PNG with the texts of `image.info` (the infotext is `parameters`)."""
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    return images.png(image, texts)


def encode_image(image: Image.Image) -> str:
    """`image` as base64 text of a PNG that carries its texts."""
    return base64.b64encode(png_bytes(image)).decode("ascii")
