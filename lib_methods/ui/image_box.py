"""A box for an image that somebody drops into the page, read by the pack's own converter.

gradio decodes whatever fits into memory, clips deep grey to white and drops transparency; here the header is checked
first, and every gradio version gives the same 8-bit image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from lib_methods.ui.gradio_compat import as_toast


def image_box(**options: Any) -> Any:
    """gradio's image box; its value is a PIL image as `to_rgba` gives it, or None."""
    box = gr.Image(type="pil", **options)
    box.preprocess = read_upload  # not a subclass: gradio writes a file beside the source of each
    return box


def read_upload(payload: Any) -> Image.Image | None:
    """The image that the browser sent: a data URL in gradio 3, later bytes or a file with `path`; None for none.

    Raises `gr.Error`, a toast, where it cannot be read.
    """
    if payload is None:
        return None
    url = payload if isinstance(payload, (str, bytes)) else getattr(payload, "url", None)
    path = getattr(payload, "path", None)
    try:
        if isinstance(url, bytes) or (isinstance(url, str) and url.startswith("data:")):
            return to_rgba(open_image(url))
        if not path:
            raise ImageError("The image did not arrive. Try again.")
        return to_rgba(open_image(Path(path)))
    except ImageError as error:
        raise gr.Error(as_toast(str(error))) from None
