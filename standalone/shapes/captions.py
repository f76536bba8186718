"""Captions of the procedural world: sentences that name any part of a scene and leave the rest open."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from standalone.shapes.world import ATTRIBUTES, Scene

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
