"""Turns what was painted over an image into a mask."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageChops

PAINTED = 16
"""Alpha, of 255, from which a stroke counts."""


def inpaint_inputs(editor: dict[str, Any] | None) -> tuple[Image.Image | None, Image.Image | None]:
    """Image and mask from an ImageEditor's value: white in the mask where any layer is painted.

    (None, None) without an image; the mask is None when nothing is painted.
    """
    if not editor or editor.get("background") is None:
        return None, None
    background: Image.Image = editor["background"]
    mask = Image.new("L", background.size, 0)
    for layer in editor.get("layers") or []:
        if layer is not None:
            alpha = layer.convert("RGBA").getchannel("A").resize(background.size)
            mask = ImageChops.lighter(mask, alpha.point(lambda value: 255 if value >= PAINTED else 0))
    return background, mask if mask.getbbox() is not None else None
