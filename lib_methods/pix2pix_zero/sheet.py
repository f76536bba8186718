"""The comparison sheet: source, reconstruction, edit and attention side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

GAP, LINE = 8, 22
LEAST_COLUMN = 92  # for the longest name


def sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Images of one size side by side, each under its name; small ones stand apart, so that the names have room."""
    width, height = pictures[0][1].size
    column = max(width, LEAST_COLUMN)
    canvas = Image.new("RGB", (len(pictures) * (column + GAP) - GAP, height + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, picture) in enumerate(pictures):
        left = index * (column + GAP)
        draw.text((left + 2, 5), name, fill="black")
        canvas.paste(picture.convert("RGB").resize((width, height)), (left, LINE))
    return canvas


def decibels(value: float) -> str:
    """A PSNR as it is told to people."""
    return "exact" if math.isinf(value) else f"{value:.1f} dB"
