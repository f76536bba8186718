"""Edits of images of the procedural world, and what came of them as figures that mean what they say.

An edit changes one attribute (kind, colour or texture) of a rendered image, whose perfect edit is known, or of an
image that the model drew. Only images are taken from which the parser reads what they show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib_methods.pix2pix_zero.directions import Direction, Embed, Origin, mean_embedding
from standalone.instruct.filters import layout_similarity
from standalone.instruct.make import render_pair
from standalone.shapes.figures import mean
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, UNIT, VALUES, Scene, caption, random_named, random_scene

Pictures = list[np.ndarray]
TASKS = ("kind", "colour", "texture")
FIGURES = ("target_accuracy", "preserved_accuracy", "background_l1", "structure_iou", "layout")
BATCH = 8
SEED = 230_000
_OBJECT = 42  # how far a pixel is from the background where the parser looks for objects, of 255
_AROUND = 1  # pixels around an object that are not counted as background: its smooth edge


@dataclass(frozen=True)
class Edit:
    """An image, what is in it and what is to be in it. wanted: the perfect edit where it is known."""

    task: str
    before: Scene
    after: Scene
    source: np.ndarray
    wanted: np.ndarray | None = None

    @property
    def words(self) -> tuple[str, str]:
        """What is there and what it is to become."""
        return getattr(self.before, self.task), getattr(self.after, self.task)

    @property
    def name(self) -> str:
        """Of the edit's direction."""
        return " to ".join(self.words)


def short_caption(scene: Scene) -> str:
    """What an edit's caption says: what may be edited, and nothing of sizes, places and backgrounds."""
    return caption(scene, TASKS)


def scenes(number: int, seed: int = SEED) -> tuple[str, Scene, Scene]:
    """Task, scene and edited scene number `number`; the tasks take turns, all else is drawn evenly."""
    task = TASKS[number % len(TASKS)]
    rng = np.random.default_rng((seed, number))
    before = random_scene(rng)
    others = [value for value in VALUES[task] if value != getattr(before, task)]
    return task, before, replace(before, **{task: others[int(rng.integers(len(others)))]})


def rendered(count: int, seen_through: Callable[[Pictures], Pictures] | None = None) -> tuple[list[Edit], float]:
    """Edits of images that are drawn without a model; and the share of the images that could be taken.

    seen_through: what the images go through on their way into the model and out of it, its autoencoder. Edits are
    taken only where the parser still reads both the image and its perfect edit right after that: an autoencoder that
    is as coarse as the one of `shapes` closes narrow gaps between objects, and no edit could be told right then.
    """

    def draw(numbers: Sequence[int]) -> list[Edit]:
        found = []
        for number in numbers:
            task, before, after = scenes(number)
            pair = render_pair(before, after, seed=SEED + number)
            found.append(Edit(task, before, after, pair[0], pair[1]))
        if seen_through is None:
            return found
        sources = seen_through([edit.source for edit in found])
        wanted = seen_through([edit.wanted for edit in found if edit.wanted is not None])
        seen = zip(found, sources, wanted, strict=True)
        return [edit for edit, source, after in seen if _is(source, edit.before) and _is(after, edit.after)]

    return _collected(count, draw)


def generated(count: int, draw: Callable[[Sequence[str], int], Pictures]) -> tuple[list[Edit], float]:
    """Edits of images that a model drew, where the parser reads every attribute of the prompt; and the share of the
    images of which that is so.

    draw: images of prompts, seeds counting up from the one given.
    """

    def drawn(numbers: Sequence[int]) -> list[Edit]:
        asked = [scenes(number, SEED + 1) for number in numbers]
        pictures = draw([caption(before) for _, before, _ in asked], SEED + numbers[0])
        found = zip(asked, pictures, strict=True)
        return [Edit(*scene, picture) for scene, picture in found if _is(picture, scene[1])]

    return _collected(count, drawn)


def _collected(count: int, draw: Callable[[Sequence[int]], list[Edit]]) -> tuple[list[Edit], float]:
    """`count` edits, the tasks in turn, of those that `draw` keeps of scenes by their numbers; and the share it keeps.

    Raises RuntimeError where hardly any are kept.
    """
    kept: dict[str, list[Edit]] = {task: [] for task in TASKS}
    wanted = {task: len(range(place, count, len(TASKS))) for place, task in enumerate(TASKS)}
    drawn = usable = number = 0
    while missing := sum(wanted[task] - len(kept[task]) for task in TASKS):
        if drawn >= 20 * count + 10 * BATCH:
            raise RuntimeError(f"Too few images match their prompt: {count - missing} of {drawn}.")
        numbers: list[int] = []
        while len(numbers) < BATCH:
            task = TASKS[number % len(TASKS)]
            if len(kept[task]) < wanted[task]:
                numbers.append(number)
            number += 1
        drawn += len(numbers)
        for edit in draw(numbers):
            usable += 1
            if len(kept[edit.task]) < wanted[edit.task]:
                kept[edit.task].append(edit)
    return [kept[TASKS[i % len(TASKS)]][i // len(TASKS)] for i in range(count)], usable / max(1, drawn)


def _is(picture: np.ndarray, scene: Scene) -> bool:
    return all(parse(picture).matches(scene, ATTRIBUTES).values())


def sentences(value: str, task: str, count: int = 96) -> list[str]:
    """Captions of the procedural world that have the value of a task's attribute, the same for all its values but for
    the value itself."""
    found = []
    for number in range(count):
        rng = np.random.default_rng((SEED + 2, number))
        scene = replace(random_scene(rng), **{task: value})
        named = {*random_named(rng), task}
        found.append(caption(scene, sorted(named, key=ATTRIBUTES.index), rng))
    return found


def directions(embed: Embed, told: Callable[[str, str], list[str]] = sentences) -> dict[str, Direction]:
    """The direction of every edit by its name. told: the sentences about a value of a task's attribute."""
    found = {}
    for task in TASKS:
        means = {value: mean_embedding(told(value, task), embed)[0] for value in VALUES[task]}
        for before in VALUES[task]:
            for after in VALUES[task]:
                if before != after:
                    origin = Origin(before, after)
                    found[f"{before} to {after}"] = Direction(means[after] - means[before], origin)
    return found


def ground(picture: np.ndarray) -> np.ndarray:
    """The colour of the background: the median of the image's frame, where no object of the world stands."""
    frame = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(frame.astype(np.float32), axis=0)


def foreground(picture: np.ndarray) -> np.ndarray:
    """Where the objects are, (height, width) of bool."""
    found: np.ndarray = np.abs(picture.astype(np.float32) - ground(picture)).max(axis=2) > _OBJECT
    return found


def background(edit: Edit) -> np.ndarray:
    """Where nothing may change, (height, width) of bool: outside of the objects of the source and of the perfect edit;
    where that is not known, outside of the boxes of the objects that the parser finds."""
    if edit.wanted is not None:
        taken = _grown(foreground(edit.source) | foreground(edit.wanted), _AROUND)
        return ~taken
    height, width = edit.source.shape[:2]
    free = np.ones((height, width), dtype=bool)
    for found in parse(edit.source).objects:
        reach = found.side * min(height, width) / UNIT / 2 + _AROUND
        rows = slice(max(0, int(found.y * height - reach)), int(np.ceil(found.y * height + reach)))
        free[rows, max(0, int(found.x * width - reach)) : int(np.ceil(found.x * width + reach))] = False
    return free & ~_grown(foreground(edit.source), _AROUND)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(mask, by)
    height, width = mask.shape
    steps = range(2 * by + 1)
    grown: np.ndarray = np.any([padded[i : i + height, j : j + width] for i in steps for j in steps], axis=0)
    return grown


def background_l1(edit: Edit, picture: np.ndarray) -> float:
    """Mean change of the background's pixels, 0 to 1."""
    change = np.abs(picture.astype(np.float32) - edit.source).mean(axis=2) / 255
    free = background(edit)
    return float(change[free].mean()) if free.any() else 0.0


def structure_iou(edit: Edit, picture: np.ndarray) -> float:
    """How far the objects stand where they stood: intersection over union of both foregrounds."""
    before, after = foreground(edit.source), foreground(picture)
    union = int((before | after).sum())
    return int((before & after).sum()) / union if union else 0.0


def psnr(picture: np.ndarray, original: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels, at most 100, which is more than images of 8 bits can tell."""
    error = float(np.square(picture.astype(np.float64) - original).mean())
    return 100.0 if error == 0 else min(100.0, float(10 * np.log10(255**2 / error)))


def measure(asked: Sequence[Edit], pictures: Pictures) -> dict[str, float]:
    """The mean of every figure over edits.

    preserved_accuracy: of all attributes but the edited one. layout: the share of objects that are as many
    and where they were. product: target accuracy times preserved accuracy.
    """
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    for edit, picture in zip(asked, pictures, strict=True):
        seen = parse(picture)
        hits = seen.matches(edit.after, ATTRIBUTES)
        values["target_accuracy"].append(float(hits.pop(edit.task)))
        values["preserved_accuracy"].append(float(np.mean(list(hits.values()))))
        values["background_l1"].append(background_l1(edit, picture))
        values["structure_iou"].append(structure_iou(edit, picture))
        values["layout"].append(layout_similarity(parse(edit.source), seen))
    means = {name: mean(found) for name, found in values.items()}
    return {**means, "product": means["target_accuracy"] * means["preserved_accuracy"]}
