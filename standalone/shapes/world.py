"""Draws images of the procedural world.

An image shows two to five objects that agree in every attribute: one kind, colour, size and texture, standing
together at one place of the image. That agreement is the point of the world: whatever a caption leaves open still
must be the same for all objects, so a model trained on it learns to carry attributes from one part of the image
to another through self-attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
PLACES = ("left", "right", "top", "bottom", "all over")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "yellow": (235, 205, 30),
    "green": (40, 160, 60),
    "cyan": (40, 190, 210),
    "blue": (50, 80, 220),
    "purple": (160, 50, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (242, 242, 242),
    "grey": (150, 150, 150),
    "black": (22, 22, 22),
    "brown": (112, 76, 48),
}

UNIT = 64  # the side of a training image in pixels; object sizes are given for it
SIZE_RANGES: dict[str, tuple[int, int]] = {"small": (15, 17), "large": (24, 27)}
STRIPE = 4  # height of one stripe in pixels
DOT = 0.5  # diameter of the dot in an object, as a share of its side
LIGHT = 0.55  # how far light stripes and dots are mixed with white
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Scene:
    """The six attributes that all objects of an image share."""

    kind: str
    colour: str
    size: str
    texture: str
    place: str
    background: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


ATTRIBUTES = tuple(f.name for f in fields(Scene))
VALUES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "size": SIZES,
    "texture": TEXTURES,
    "place": PLACES,
    "background": tuple(BACKGROUNDS),
}


def random_scene(rng: np.random.Generator, **fixed: str) -> Scene:
    """A scene with every attribute drawn uniformly, save those given by name."""
    drawn = {name: fixed.get(name) or VALUES[name][rng.integers(len(VALUES[name]))] for name in ATTRIBUTES}
    return Scene(**drawn)


def outline_points(kind: str, side: float) -> list[tuple[float, float]]:
    """The corners of an object's outline in a box of `side` by `side`."""
    third = side / 3
    if kind == "square":
        return [(0, 0), (side, 0), (side, side), (0, side)]
    if kind == "triangle":
        return [(side / 2, 0), (side, side), (0, side)]
    if kind == "cross":
        a, b = third, 2 * third
        return [
            (a, 0),
            (b, 0),
            (b, a),
            (side, a),
            (side, b),
            (b, b),
            (b, side),
            (a, side),
            (a, b),
            (0, b),
            (0, a),
            (a, a),
        ]
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return [(side / 2 * (1 + float(np.cos(a))), side / 2 * (1 + float(np.sin(a)))) for a in angle]


@lru_cache(maxsize=4096)
def object_layers(kind: str, texture: str, side: int, unit: int = UNIT) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the object and of its light part, each of shape (side, side) in [0, 1].

    `unit` is the image's short side: stripes grow with it.
    """
    scale = unit / UNIT
    big = side * SUPERSAMPLE
    canvas = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(canvas)
    draw.polygon(outline_points(kind, big - 1), fill=255)
    full = np.asarray(canvas, dtype=np.float32) / 255
    light: np.ndarray = np.zeros_like(full)
    if texture == "dotted":
        y, x = np.mgrid[0:big, 0:big] / big
        middle = 0.64 if kind == "triangle" else 0.5  # a triangle's mass lies low
        light = full * (np.hypot(x - 0.5, y - middle) < DOT / 2)
    elif texture == "striped":
        rows = (np.arange(big) // max(1, round(STRIPE * scale * SUPERSAMPLE))) % 2
        light = full * rows[:, None].astype(np.float32)
    shape = (side, SUPERSAMPLE, side, SUPERSAMPLE)
    full, light = full.reshape(shape).mean((1, 3)), light.reshape(shape).mean((1, 3))
    full.setflags(write=False)
    light.setflags(write=False)
    return full, light


def _centres(
    rng: np.random.Generator, scene: Scene, side: int, count: int, width: int, height: int
) -> list[tuple[int, int]] | None:
    """Top left corners for `count` objects that keep apart and stand where the scene says; None if this draw found no
    room."""
    gap, margin = max(2, side // 8), 2
    lo_x, hi_x, lo_y, hi_y = margin, width - margin - side, margin, height - margin - side
    if scene.place == "left":
        hi_x = min(hi_x, width // 2 - side)
    elif scene.place == "right":
        lo_x = max(lo_x, width // 2)
    elif scene.place == "top":
        hi_y = min(hi_y, height // 2 - side)
    elif scene.place == "bottom":
        lo_y = max(lo_y, height // 2)
    if hi_x < lo_x or hi_y < lo_y:
        return None
    corners: list[tuple[int, int]] = []
    for _ in range(40):
        x, y = int(rng.integers(lo_x, hi_x + 1)), int(rng.integers(lo_y, hi_y + 1))
        if all(abs(x - a) >= side + gap or abs(y - b) >= side + gap for a, b in corners):
            corners.append((x, y))
            if len(corners) == count:
                break
    else:
        return None
    dx = np.mean([x + side / 2 for x, _ in corners]) / width - 0.5
    dy = np.mean([y + side / 2 for _, y in corners]) / height - 0.5
    offset = {"left": -dx, "right": dx, "top": -dy, "bottom": dy}.get(scene.place)
    across = abs(dy) if scene.place in ("left", "right") else abs(dx)
    if offset is None:
        return corners if max(abs(dx), abs(dy)) < 0.07 else None
    return corners if offset > 0.16 and across < 0.12 else None


@dataclass(frozen=True)
class Layout:
    """What chance decides about an image: the objects' side and top left corners (x, y) in pixels, and how far their
    colour and the background's stray: integers of shape (2, 3)."""

    side: int
    corners: tuple[tuple[int, int], ...]
    jitter: np.ndarray


def draw_layout(scene: Scene, rng: np.random.Generator, width: int = UNIT, height: int = UNIT) -> Layout:
    """Two to five objects of the scene's size at the scene's place."""
    unit = min(width, height)
    low, high = SIZE_RANGES[scene.size]
    most = 5 if scene.size == "small" else 3 if scene.place == "all over" else 2
    for attempt in range(1000):
        side = max(4, round(int(rng.integers(low, high + 1)) * unit / UNIT))
        count = int(rng.integers(2, most + 1)) if attempt < 500 else 2
        corners = _centres(rng, scene, side, count, width, height)
        if corners:
            break
    else:
        raise ValueError(f"no room for two {scene.size} objects in a picture of {width}x{height}")
    return Layout(side, tuple(corners), rng.integers(-7, 8, size=(2, 3)))


def paint(scene: Scene, layout: Layout, width: int = UNIT, height: int = UNIT) -> np.ndarray:
    """An image of the scene with its objects where the layout says: uint8 of shape (height, width, 3)."""
    jitter, side = layout.jitter, layout.side
    colour = np.clip(np.array(COLOURS[scene.colour]) + jitter[0], 0, 255).astype(np.float32)
    ground = np.clip(np.array(BACKGROUNDS[scene.background]) + jitter[1].mean().round(), 0, 255).astype(np.float32)
    picture = np.broadcast_to(ground, (height, width, 3)).copy()
    full, light = object_layers(scene.kind, scene.texture, side, min(width, height))
    pale = colour * (1 - LIGHT) + 255 * LIGHT
    for x, y in layout.corners:
        patch = picture[y : y + side, x : x + side]
        patch += (full - light)[..., None] * (colour - patch) + light[..., None] * (pale - patch)
    return np.clip(picture.round(), 0, 255).astype(np.uint8)


def render(scene: Scene, rng: np.random.Generator, width: int = UNIT, height: int = UNIT) -> np.ndarray:
    """Draw an image of the scene: uint8 of shape (height, width, 3). Positions, count and exact size come from
    `rng`."""
    return paint(scene, draw_layout(scene, rng, width, height), width, height)


_PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
_PLACE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "all over": "all over",
}


def caption(scene: Scene, named: Iterable[str] = ATTRIBUTES, rng: np.random.Generator | None = None) -> str:
    """A caption that names the given attributes of the scene, such as "small red circles on the left, white
    background".

    Without `rng` the wording is always the same; with it, one of several wordings is drawn. No attribute gives "".
    """
    wanted = set(named)
    if not wanted:
        return ""
    style = int(rng.integers(4)) if rng is not None else 0
    before = [getattr(scene, name) for name in ("size", "texture", "colour") if name in wanted]
    noun = _PLURAL[scene.kind] if "kind" in wanted else "shapes"
    place = _PLACE[scene.place] if "place" in wanted else ""
    ground = f"{scene.background} background" if "background" in wanted else ""
    if style == 3 and rng is not None:  # a list of tags, as many people write prompts
        tags = [noun, *before, *(t for t in (place, ground) if t)]
        return ", ".join(tags[i] for i in rng.permutation(len(tags)))
    body = " ".join([*before, noun, *([place] if place else [])])
    if not ground:
        sentence = body
    elif style in (0, 2):
        sentence = f"{body} on a {ground}"
    else:
        sentence = f"{body}, {ground}"
    return f"a picture of {sentence}" if style == 2 else sentence


def random_named(rng: np.random.Generator) -> tuple[str, ...]:
    """Which attributes a training caption names: from none to all six, every number equally likely, "none" a little
    rarer."""
    count = int(rng.integers(0, len(ATTRIBUTES) + 1))
    return tuple(ATTRIBUTES[i] for i in sorted(rng.permutation(len(ATTRIBUTES))[:count]))
