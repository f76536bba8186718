"""Reads the attributes of an image of the procedural world back by pixel analysis.

No neural judge: the background is the most common colour, objects are connected regions that differ from it, and kind
and texture come from comparing each object with drawings of every kind and texture at its own size (analysis by
synthesis).
"""

from __future__ import annotations

import colorsys
from collections import Counter
from dataclasses import dataclass

import numpy as np

from standalone.shapes.world import BACKGROUNDS, COLOURS, KINDS, SIZE_RANGES, TEXTURES, UNIT, Scene, object_layers

_HUES = {name: colorsys.rgb_to_hsv(*(c / 255 for c in rgb))[0] * 360 for name, rgb in COLOURS.items()}
_SIZE_BORDER = (SIZE_RANGES["small"][1] + SIZE_RANGES["large"][0]) / 2


@dataclass(frozen=True)
class ParsedObject:
    """One object: centre in [0, 1] of the image, side in pixels of a 64-pixel image, and what it looks like."""

    x: float
    y: float
    side: float
    kind: str
    texture: str
    colour: str
    saturation: float
    fit: float


@dataclass(frozen=True)
class ParsedPicture:
    """What the parser found; an attribute is None when no object was found to tell it from."""

    attributes: dict[str, str | None]
    objects: tuple[ParsedObject, ...]

    def matches(self, scene: Scene, named: tuple[str, ...]) -> dict[str, bool]:
        """For every named attribute: is it in the image?"""
        return {name: self.attributes[name] == getattr(scene, name) for name in named}


def parse(picture: np.ndarray) -> ParsedPicture:
    """Parse an image: uint8 of shape (height, width, 3). Never raises on an odd image; it just finds no objects."""
    pixels = np.asarray(picture, dtype=np.float32)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError("an image of shape (height, width, 3) is needed")
    height, width = pixels.shape[:2]
    unit = min(height, width)
    ground = _ground(pixels)
    distance = np.abs(pixels - ground).max(axis=2)
    objects = []
    for rows, cols, mask in _regions(distance > 42, least=round((6 * unit / UNIT) ** 2)):
        found = _describe(pixels[rows, cols], distance[rows, cols], mask, ground, unit)
        if found is not None:
            kind, texture, colour, saturation, fit = found
            side = max(mask.shape) * UNIT / unit
            x, y = (cols.start + cols.stop) / 2 / width, (rows.start + rows.stop) / 2 / height
            objects.append(ParsedObject(x, y, side, kind, texture, colour, saturation, fit))
    return ParsedPicture(_agree(objects, ground), tuple(objects))


def _ground(pixels: np.ndarray) -> np.ndarray:
    """The background's colour: the median of the most crowded of 16x16x16 boxes of colour space."""
    flat = pixels.reshape(-1, 3)
    box = (flat // 32).astype(np.int64) @ np.array([64, 8, 1])
    # a flat ground near a box border may fall into two boxes, so neighbours within the same tolerance are pooled by
    # the median's reach
    common = np.bincount(box).argmax()
    centre = np.median(flat[box == common], axis=0)
    near = np.abs(flat - centre).max(axis=1) < 24
    return np.median(flat[near], axis=0) if near.any() else centre


def _regions(mask: np.ndarray, least: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Connected regions (8 neighbours) of a mask with a box of at least `least` pixels: row slice, column slice, mask
    in the box."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # spread the largest label of each region until nothing changes; images are small
        padded = np.pad(labels, 1)
        height, width = mask.shape
        spread = np.max([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0) * mask
        if np.array_equal(spread, labels):
            break
        labels = spread
    regions = []
    for label in np.unique(labels[labels > 0]):
        rows, cols = np.nonzero(labels == label)
        box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(cols.min()), int(cols.max()) + 1)
        if (box[0].stop - box[0].start) * (box[1].stop - box[1].start) >= least:
            regions.append((*box, labels[box] == label))
    return regions


def _describe(
    pixels: np.ndarray, distance: np.ndarray, mask: np.ndarray, ground: np.ndarray, unit: int
) -> tuple[str, str, str, float, float] | None:
    """Kind, texture, colour, saturation and fit (0 to 1) of one object, or None when it looks like nothing we draw."""
    side = max(mask.shape)
    if min(mask.shape) < 0.6 * side:
        return None
    # the strongest quarter of the colour is the pure one, whatever the texture
    values = pixels[mask]
    chroma = values.max(axis=1) - values.min(axis=1)
    pure = np.median(values[chroma >= np.quantile(chroma, 0.75)], axis=0)
    colour = _colour(pure)
    saturation = colorsys.rgb_to_hsv(*(pure / 255))[1]
    pale = pure * 0.45 + 255 * 0.55
    padded = np.broadcast_to(ground, (side, side, 3)).copy()
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    padded[top : top + mask.shape[0], left : left + mask.shape[1]] = np.where(mask[..., None], pixels, ground)
    best = ("", "", np.inf)
    for kind in KINDS:
        for texture in TEXTURES:
            full, light = object_layers(kind, texture, side, unit)
            drawn = ground + (full - light)[..., None] * (pure - ground) + light[..., None] * (pale - ground)
            error = float(np.abs(drawn - padded).mean())
            if error < best[2]:
                best = (kind, texture, error)
    contrast = float(np.abs(pure - ground).mean()) + 1e-6
    fit = max(0.0, 1 - best[2] / contrast)
    return (best[0], best[1], colour, saturation, fit) if fit > 0.4 else None


def _colour(rgb: np.ndarray) -> str:
    hue = colorsys.rgb_to_hsv(*(float(c) / 255 for c in rgb))[0] * 360
    return min(_HUES, key=lambda name: min(abs(hue - _HUES[name]), 360 - abs(hue - _HUES[name])))


def _agree(objects: list[ParsedObject], ground: np.ndarray) -> dict[str, str | None]:
    """The image's attributes: what most of its objects say, weighted by how well they fit."""
    nearest = min(BACKGROUNDS, key=lambda name: float(np.abs(np.array(BACKGROUNDS[name]) - ground).sum()))
    result: dict[str, str | None] = {"background": nearest}
    for name in ("kind", "texture", "colour", "size", "place"):
        result[name] = None
    if not objects:
        return result
    for name in ("kind", "texture", "colour"):
        votes: Counter[str] = Counter()
        for found in objects:
            votes[getattr(found, name)] += found.fit  # type: ignore[assignment]
        result[name] = votes.most_common(1)[0][0]
    result["size"] = "small" if float(np.median([o.side for o in objects])) < _SIZE_BORDER else "large"
    dx, dy = float(np.mean([o.x for o in objects])) - 0.5, float(np.mean([o.y for o in objects])) - 0.5
    if max(abs(dx), abs(dy)) < 0.115:
        result["place"] = "all over"
    elif abs(dx) > abs(dy):
        result["place"] = "left" if dx < 0 else "right"
    else:
        result["place"] = "top" if dy < 0 else "bottom"
    return result
