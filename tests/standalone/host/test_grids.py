"""Captions around grids: cells stay as they are, and every column and row is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from standalone.host.grids import GridAnnotation, draw_grid_annotations, draw_prompt_matrix

SIDES = st.integers(16, 90)


def grid(columns: int, rows: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 200, (rows * height, columns * width, 3), np.uint8)
    return Image.fromarray(pixels)


def captions(*texts: str) -> list[list[GridAnnotation]]:
    return [[GridAnnotation(text)] for text in texts]


def cells(im: Image.Image, width: int, height: int, columns: int, rows: int, margin: int = 0) -> list[bytes]:
    """The cells in the lower right of a picture, row by row."""
    left = im.width - columns * (width + margin) + margin
    top = im.height - rows * (height + margin) + margin
    corners = [(left + x * (width + margin), top + y * (height + margin)) for y in range(rows) for x in range(columns)]
    return [im.crop((x, y, x + width, y + height)).tobytes() for x, y in corners]


@given(SIDES, SIDES, st.integers(1, 4), st.integers(1, 3), st.integers(0, 20))
def test_cells_stay_as_they_are(width: int, height: int, columns: int, rows: int, margin: int) -> None:
    made = grid(columns, rows, width, height)
    above, beside = captions(*["Steps: 20"] * columns), captions(*["CFG Scale: 7.0"] * rows)
    result = draw_grid_annotations(made, width, height, above, beside, margin)
    assert cells(result, width, height, columns, rows, margin) == cells(made, width, height, columns, rows)
    left, top = result.width - columns * (width + margin) + margin, result.height - rows * (height + margin) + margin
    pixels = np.asarray(result)
    for x in range(columns):
        assert (pixels[:top, left + x * (width + margin) :][:, :width] < 128).any()
    for y in range(rows):
        assert (pixels[top + y * (height + margin) :, :left][:height] < 128).any()


def test_without_captions_there_is_no_border() -> None:
    made = grid(2, 2, 32, 32)
    result = draw_grid_annotations(made, 32, 32, captions("", ""), captions("", ""))
    assert result.tobytes() == made.tobytes()
    above_alone = draw_grid_annotations(made, 32, 32, captions("a", "b"), captions("", ""))
    assert (above_alone.width, above_alone.height > 64) == (64, True)


@pytest.mark.parametrize("text", ["a" * 500, "many words " * 40, "日本語", "🙂", "\N{RIGHT-TO-LEFT OVERRIDE}x", "a\nb"])
def test_any_text_can_be_a_caption(text: str) -> None:
    result = draw_grid_annotations(grid(1, 1, 64, 64), 64, 64, captions(text), captions(text))
    assert result.width < 200


def test_a_prompt_matrix_strikes_out_what_a_cell_does_not_have() -> None:
    made = grid(2, 2, 128, 128)
    result = draw_prompt_matrix(made, 128, 128, ["a circle", "red", "large"])
    assert cells(result, 128, 128, 2, 2) == cells(made, 128, 128, 2, 2)
    top = np.asarray(result)[: result.height - 256, result.width - 256 :]
    without, with_ = top[:, :128], top[:, 128:]
    assert without.min() == 0x99  # the line through it
    assert with_.min() < 0x60
