"""Boxes for images and files that somebody drops into the page.

gradio decodes whatever fits into memory, clips deep grey to white and drops transparency; here an image's header is
checked first, and every gradio version gives the same 8-bit image.

An event may name any file as its value, and gradio 3 copies it into its own folder before a handler sees it; gradio 4
downloads what an address names. Here only a file that was uploaded is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.files import is_file_inside
from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from lib_methods.webui.door import NOT_UPLOADED
from lib_methods.webui.gradio_compat import as_toast


def image_box(**options: Any) -> Any:
    """gradio's image box; its value is a PIL image as `to_rgba` gives it, or None."""
    box = gr.Image(type="pil", **options)
    box.preprocess = read_upload  # not a subclass: gradio writes a file beside the source of each
    return uploads_only(box)


def file_box(**options: Any) -> Any:
    """gradio's box for files that are uploaded."""
    return uploads_only(gr.File(**options))


def uploads_only(box: Any) -> Any:
    """Makes a box of gradio's refuse every file that was not uploaded, with a toast. Returns the box."""
    folder = Path(getattr(box, "GRADIO_CACHE", None) or box.DEFAULT_TEMP_DIR)
    folders, take = (folder, folder.resolve()), box.preprocess

    def preprocess(payload: Any) -> Any:
        if not all(is_file_inside(path, folders) for path in _named_files(payload)):
            raise gr.Error(as_toast(NOT_UPLOADED))
        return take(payload)

    box.preprocess = preprocess
    for name in ("move_resource_to_block_cache", "async_move_resource_to_block_cache"):  # from gradio 4 on
        if hasattr(box, name):
            setattr(box, name, _without_downloads(getattr(box, name)))
    return box


def _without_downloads(move: Any) -> Any:
    def moved(source: Any) -> Any:
        if re.match(r"\s*\w[\w+.-]+:(//|\\\\)", str(source)):
            raise gr.Error(as_toast(NOT_UPLOADED))
        return move(source)

    return moved


def _named_files(payload: Any) -> Iterator[str]:
    """The paths in what the browser sent as a box's value: one or several descriptions of files, or data."""
    items = getattr(payload, "root", payload)
    for item in items if isinstance(items, (list, tuple)) else [items]:
        if isinstance(item, dict):
            path = item.get("path", item.get("name") if item.get("is_file") else None)
        else:
            path = getattr(item, "path", None)
        if path is not None:
            yield str(path)


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
