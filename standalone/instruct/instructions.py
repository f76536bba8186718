"""Edits by instruction of images of the procedural world, and what came of them as figures.

An instruction asks for one other attribute ("make it red"). The parser reads the attributes back: is the asked one
there, and are all others as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from standalone.instruct.filters import layout_similarity
from standalone.instruct.make import render_pair
from standalone.instruct.triplets import world_triplet
from standalone.shapes.figures import mean
from standalone.shapes.parser import ParsedPicture, parse
from standalone.shapes.world import ATTRIBUTES, VALUES, Scene

Pictures = list[np.ndarray]
SEED = 90_000  # of the triplets; training takes small ones
FIGURES = ("instruction_accuracy", "preservation", "direction", "similarity", "layout")


@dataclass(frozen=True)
class Edit:
    """An image and what is asked of it. changed: the attribute."""

    instruction: str
    before: Scene
    after: Scene
    changed: str
    source: np.ndarray
    wanted: np.ndarray


def edits(count: int) -> list[Edit]:
    """`count` edits; what is changed is drawn evenly."""
    found = []
    for number in range(count):
        triplet = world_triplet(SEED, number)
        before, after = triplet.scene_before, triplet.scene_after
        assert before is not None and after is not None
        changed = next(name for name in ATTRIBUTES if getattr(before, name) != getattr(after, name))
        found.append(Edit(triplet.instruction, before, after, changed, *render_pair(before, after, seed=SEED + number)))
    return found


def vector(attributes: dict[str, str | None]) -> np.ndarray:
    """One place for each value of each attribute, 1 where the image has it."""
    return np.array([float(attributes[name] == value) for name in ATTRIBUTES for value in VALUES[name]])


def direction(edit: Edit, before: ParsedPicture, after: ParsedPicture) -> float:
    """Cosine of the change that is seen and the change that is asked; 0 where nothing has changed."""
    seen = vector(after.attributes) - vector(before.attributes)
    asked = vector(dict(edit.after.as_dict())) - vector(dict(edit.before.as_dict()))
    length = float(np.linalg.norm(seen) * np.linalg.norm(asked))
    return float(seen @ asked) / length if length else 0.0


def measure(asked: Sequence[Edit], pictures: Pictures) -> dict[str, float]:
    """The figures of one setting.

    similarity: 1 for the same image, 0 for black in place of white: one minus the mean difference of the pixels.
    """
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    for edit, picture in zip(asked, pictures, strict=True):
        before, after = parse(edit.source), parse(picture)
        hits = after.matches(edit.after, ATTRIBUTES)
        values["instruction_accuracy"].append(float(hits.pop(edit.changed)))
        values["preservation"].append(float(np.mean(list(hits.values()))))
        values["direction"].append(direction(edit, before, after))
        values["similarity"].append(1.0 - float(np.abs(picture.astype(np.float32) - edit.source).mean()) / 255)
        values["layout"].append(layout_similarity(before, after))
    return {name: mean(found) for name, found in values.items()}
