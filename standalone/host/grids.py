"""Captions around a grid of images: what the X/Y/Z plot and the prompt matrix write beside columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from standalone.host import shared

_GAP = 10


@dataclass
class GridAnnotation:
    """A line of a caption. is_active: False strikes it out."""

    text: str = ""
    is_active: bool = True


Caption = Sequence[GridAnnotation]


def draw_grid_annotations(
    im: Image.Image,
    width: int,
    height: int,
    hor_texts: Sequence[Caption],
    ver_texts: Sequence[Caption],
    margin: int = 0,
) -> Image.Image:
    """The grid with a caption above each column and left of each row. width, height: of a cell; margin: between cells
    of the result, all in pixels."""
    font = ImageFont.load_default(size=max(10, min(32, (width + height) // 24)))
    columns = [_wrapped(caption, font, width) for caption in hor_texts]
    left = 0 if not any(line.text for caption in ver_texts for line in caption) else max(width * 3 // 4, 48)
    rows = [_wrapped(caption, font, left - _GAP) if left else [] for caption in ver_texts]
    top = max((_height(lines, font) for lines in columns), default=0)
    top = top + 2 * _GAP if any(line.text for lines in columns for line in lines) else 0

    across, down = im.width // width, im.height // height
    size = (left + across * (width + margin) - margin, top + down * (height + margin) - margin)
    result = Image.new("RGB", size, shared.opts.grid_background_color)
    for x, y in ((x, y) for y in range(down) for x in range(across)):
        cell = im.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
        result.paste(cell, (left + x * (width + margin), top + y * (height + margin)))
    draw = ImageDraw.Draw(result)
    for number, lines in enumerate(columns):
        _write(draw, lines, font, left + number * (width + margin) + width / 2, top / 2)
    for number, lines in enumerate(rows):
        _write(draw, lines, font, left / 2, top + number * (height + margin) + height / 2)
    return result


def draw_prompt_matrix(
    im: Image.Image, width: int, height: int, all_prompts: Sequence[str], margin: int = 0
) -> Image.Image:
    """The grid of a prompt matrix with the parts that each column and row has; the others are struck out."""
    parts = all_prompts[1:]
    half = (len(parts) + 1) // 2

    def captions(some: Sequence[str]) -> list[list[GridAnnotation]]:
        numbers = range(1 << len(some))
        return [[GridAnnotation(part, bool(number >> i & 1)) for i, part in enumerate(some)] for number in numbers]

    return draw_grid_annotations(im, width, height, captions(parts[:half]), captions(parts[half:]), margin)


def _wrapped(caption: Caption, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[GridAnnotation]:
    """The caption in lines that are at most `width` pixels long, where their words allow it."""
    found = []
    for annotation in caption:
        words = annotation.text.split(" ")
        starts = [0]
        for end in range(1, len(words)):
            if font.getlength(" ".join(words[starts[-1] : end + 1])) > width:
                starts.append(end)
        lines = (" ".join(words[start:end]) for start, end in pairwise([*starts, len(words)]))
        found += [GridAnnotation(line, annotation.is_active) for line in lines]
    return found


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return font.getbbox("Ag")[3] * 1.3


def _height(lines: Sequence[GridAnnotation], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return round(len(lines) * _line_height(font))


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[GridAnnotation],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    x: float,
    y: float,
) -> None:
    """Writes lines around the point (x, y)."""
    step = _line_height(font)
    for number, line in enumerate(lines):
        middle = y + (number - (len(lines) - 1) / 2) * step
        colour = shared.opts.grid_text_active_color if line.is_active else shared.opts.grid_text_inactive_color
        draw.text((x, middle), line.text, colour, font, anchor="mm")
        if not line.is_active:
            half = font.getlength(line.text) / 2
            draw.line((x - half, middle, x + half, middle), colour, 2)
