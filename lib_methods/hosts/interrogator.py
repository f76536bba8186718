"""What the host says that a picture shows, where it has an interrogator: AUTOMATIC1111's WebUI has BLIP's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from lib_methods.denoiser import Unsupported
from lib_methods.pictures.convert import to_rgb

FAILED = "The WebUI could not describe the picture; its console says why. It may have a model to download first."


def interrogator() -> Callable[[Image.Image], str] | None:
    """Tells a picture's caption, when no job is at work; None where the host cannot. Raises `Unsupported` with a
    sentence where it fails."""
    try:
        from modules import call_queue, shared
    except ImportError:
        return None
    found: Any = getattr(shared, "interrogator", None)
    if not callable(getattr(found, "interrogate", None)):
        return None

    def caption(picture: Image.Image) -> str:
        try:
            text = str(call_queue.wrap_queued_call(found.interrogate)(to_rgb(picture)))
        except Exception as error:
            raise Unsupported(FAILED) from error
        told = text.partition(",")[0].strip()  # the rest are artists and styles
        if not told or "<error>" in text:  # as the host writes where it has already logged what went wrong
            raise Unsupported(FAILED)
        return told

    return caption
