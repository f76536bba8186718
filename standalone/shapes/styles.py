"""Styles for images of the procedural world, their captions, and a parser that tells them apart.

A style changes how an image is made and never what it shows. Hatching and grout repeat every four pixels, so averaging
over 4x4 pixels removes them exactly: what is left is read by the world's own parser.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from standalone.shapes.parser import ParsedPicture, parse
from standalone.shapes.world import ATTRIBUTES, Layout, Scene, caption, draw_layout, paint

STYLES = ("photo", "oil painting", "pencil drawing", "mosaic")
SIDE = 128  # of a styled image in pixels; strokes and tiles have a fixed size in pixels
CELL = 4  # side of a tile and period of the hatching, in pixels
_ARTICLE = {name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in STYLES}
_GROUT, _OUTLINE, _HATCHED, _GAP = 0.6, 0.5, 0.76, 1.16  # brightness of grout, outlines, hatching and between it
_TILE_SPREAD, _STROKE_SPREAD = 0.05, 0.11  # by how much tiles and strokes differ in brightness
_STROKE = (8.0, 3.0)  # length and width of a brush stroke


def restyle(picture: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """An image of the world (uint8 of shape (height, width, 3), sides divisible by 4) in one of `STYLES`."""
    pixels = picture.astype(np.float32)
    if style == "mosaic":
        pixels = _tiles(pixels, rng)
    elif style == "oil painting":
        pixels = _strokes(pixels, rng)
    elif style == "pencil drawing":
        pixels = _hatched(pixels)
    elif style != "photo":
        raise ValueError(f"no style {style!r}; there are {', '.join(STYLES)}")
    return np.clip(pixels.round(), 0, 255).astype(np.uint8)


def paint_aligned(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """An image to restyle: uint8 of shape (128, 128, 3). Objects start and end at the border of a cell, so that tiles,
    and the pixels of the image at a quarter of its size, hold one part of an object each."""
    small = draw_layout(scene, rng, SIDE // CELL, SIDE // CELL)
    corners = tuple((CELL * x, CELL * y) for x, y in small.corners)
    return paint(scene, Layout(CELL * small.side, corners, small.jitter), SIDE, SIDE)


def render_styled(scene: Scene, style: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene in a style: uint8 of shape (128, 128, 3)."""
    return restyle(paint_aligned(scene, rng), style, rng)


def _tiles(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Square tiles of one colour each, with darker grout between them."""
    height, width = pixels.shape[:2]
    tiles = pixels.reshape(height // CELL, CELL, width // CELL, CELL, 3).mean((1, 3))
    tiles *= 1 + _TILE_SPREAD * rng.uniform(-1, 1, (*tiles.shape[:2], 1)).astype(np.float32)
    return tiles.repeat(CELL, 0).repeat(CELL, 1) * _grout(height, width)[..., None]


def _grout(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] % CELL
    return np.where((x == 0) | (y == 0), np.float32(_GROUT), np.float32(1))


def _hatch(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.where((x + y) % CELL < CELL // 2, np.float32(_HATCHED), np.float32(_GAP))


def _hatched(pixels: np.ndarray) -> np.ndarray:
    """Objects hatched on the diagonal, with dark outlines, on a plain ground."""
    height, width = pixels.shape[:2]
    drawn = np.abs(pixels - pixels[0, 0]).max(2) > 30  # corners show the ground
    padded = np.pad(drawn, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    shade = np.where(drawn, np.where(inside, _hatch(height, width), np.float32(_OUTLINE)), np.float32(1))
    return pixels * shade[..., None]


def _strokes(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of brush strokes in one direction, each of one colour and with bristles along it."""
    height, width = pixels.shape[:2]
    angle = rng.uniform(0.15, 0.6)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x * along[0] + y * along[1], x * across[0] + y * across[1] + width
    row = (v // _STROKE[1]).astype(np.int64)
    shifts = rng.uniform(0, _STROKE[0], int(row.max()) + 1).astype(np.float32)
    column = ((u + shifts[row]) // _STROKE[0]).astype(np.int64)
    middle_u, middle_v = (column + 0.5) * _STROKE[0] - shifts[row], (row + 0.5) * _STROKE[1] - width
    # a brush follows the shape: a little way to the middle of the stroke
    from_x = x + 0.15 * (middle_u * along[0] + middle_v * across[0] - x)
    from_y = y + 0.15 * (middle_u * along[1] + middle_v * across[1] - y)
    taken = pixels[from_y.round().astype(int).clip(0, height - 1), from_x.round().astype(int).clip(0, width - 1)]
    light = rng.uniform(-1, 1, (int(row.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    bristle = np.cos((v / _STROKE[1] - row - 0.5) * np.pi) - 0.64
    return taken * (1 + _STROKE_SPREAD * (light[row, column] + bristle))[..., None]


@dataclass(frozen=True)
class ParsedStyle:
    """The style, what it was told from, and the image's attributes."""

    style: str
    strength: dict[str, float]
    picture: ParsedPicture


def parse_styled(picture: np.ndarray) -> ParsedStyle:
    """Read style and attributes of an image: uint8 of shape (height, width, 3), 128 pixels high as a rule."""
    pixels = np.asarray(picture, dtype=np.float32)
    smooth = _averaged(pixels)
    style, strength = read_style(pixels, smooth)
    height, width = (side // CELL * CELL for side in pixels.shape[:2])
    plain = pixels[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL, 3).mean((1, 3))
    if style == "mosaic":  # as bright as without its pattern
        plain = plain / _grout(CELL, CELL).mean()
    elif style == "pencil drawing":
        plain = plain / np.where(_apart(plain), _hatch(CELL, CELL).mean(), 1)[..., None]
    plain = plain.clip(0, 255).round().astype(np.uint8).repeat(2, 0).repeat(2, 1)
    return ParsedStyle(style, strength, parse(plain))


def _averaged(pixels: np.ndarray) -> np.ndarray:
    """The mean over 4x4 pixels around each pixel's lower right corner."""
    padded = np.pad(pixels, ((1, 2), (1, 2), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    rows = np.sum([padded[i : i + height] for i in range(CELL)], axis=0)
    return np.sum([rows[:, i : i + width] for i in range(CELL)], axis=0) / CELL**2


def _apart(pixels: np.ndarray) -> np.ndarray:
    """Which pixels differ from the most common colour."""
    return np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0)).max(2) > 42


def read_style(pixels: np.ndarray, smooth: np.ndarray) -> tuple[str, dict[str, float]]:
    """The style that the fine pattern shows, and how strong each pattern is (1: as rendered, 0: not there)."""
    height, width = pixels.shape[:2]
    base = smooth.mean(2) + 8.0  # a dark ground's own noise is no pattern
    fine = (pixels.mean(2) - smooth.mean(2)) / base
    strength = {}
    for name, pattern, where in (
        ("mosaic", _grout(height, width), np.ones((height, width))),
        ("pencil drawing", _hatch(height, width), _apart(smooth)),
    ):
        expected = pattern / pattern[:CELL, :CELL].mean() - 1
        strength[name] = float((fine * expected * where).sum() / max(1e-6, (expected**2 * where).sum()))
    # strokes leave their mark everywhere, edges only in places: a median tells them
    strength["oil painting"] = float(np.median(np.abs(fine)) / 0.045)
    strongest = max(("mosaic", "pencil drawing"), key=lambda name: strength[name])
    if strength[strongest] < 0.5:
        strongest = "oil painting" if strength["oil painting"] > 0.4 else "photo"
    return strongest, strength


def styled_caption(
    scene: Scene, style: str | None, named: Iterable[str] = ATTRIBUTES, rng: np.random.Generator | None = None
) -> str:
    """A caption as the world's, after "an oil painting of" and the like; without a style it is the world's own."""
    text = caption(scene, named, rng).removeprefix("a picture of ")
    if style is None or not text:
        return text if style is None else _ARTICLE[style]
    return f"{_ARTICLE[style]} of {text}"
