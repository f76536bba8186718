"""Caption triplets: what is in an image, an instruction, and what is in it afterwards.

They come from a JSON-lines file, as InstructPix2Pix got them from a language model, or from the procedural world, where
one attribute of a scene is changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib_methods.errors import UserError
from standalone.shapes.world import VALUES, Scene, caption, random_scene

CHANGED = ("kind", "colour", "size", "texture", "background")
"""What an instruction may change. The place is not among them: an edit leaves the objects where they are."""
LONGEST = 1000  # characters of a caption or an instruction
_FIELDS = ("before", "instruction", "after")
_PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
_WORDINGS: dict[str, tuple[str, ...]] = {
    "kind": ("turn the {old}s into {new}s", "make them {new}s", "replace the {old}s with {new}s", "{new}s instead"),
    "colour": ("make it {new}", "make them {new}", "change the colour to {new}", "turn the {kind}s {new}"),
    "size": ("make them {new}", "make the {kind}s {new}", "change the size to {new}"),
    "texture": ("make it {new}", "make them {new}", "turn the {kind}s {new}"),
    "background": ("make the background {new}", "change the background to {new}", "put them on a {new} background"),
}


@dataclass(frozen=True)
class Triplet:
    """A caption before and after an instruction. The scenes are known for the procedural world only."""

    before: str
    instruction: str
    after: str
    scene_before: Scene | None = None
    scene_after: Scene | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest; what is not known is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def _instruction(scene: Scene, attribute: str, value: str, rng: np.random.Generator) -> str:
    wordings = _WORDINGS[attribute]
    text = wordings[int(rng.integers(len(wordings)))]
    old = getattr(scene, attribute)
    for kind, plural in _PLURAL.items():  # "crosss" is no plural
        for name, word in (("{old}s", old), ("{new}s", value), ("{kind}s", scene.kind)):
            if word == kind:
                text = text.replace(name, plural)
    return text.format(old=old, new=value)


def world_triplet(seed: int, number: int) -> Triplet:
    """Triplet `number` of the procedural world: a random scene of which one attribute, drawn evenly, is changed.

    Each depends on `seed` and `number` alone. The captions name all attributes.
    """
    rng = np.random.default_rng((seed, number))
    scene = random_scene(rng)
    attribute = CHANGED[int(rng.integers(len(CHANGED)))]
    others = [value for value in VALUES[attribute] if value != getattr(scene, attribute)]
    value = others[int(rng.integers(len(others)))]
    after = replace(scene, **{attribute: value})
    return Triplet(caption(scene), _instruction(scene, attribute, value, rng), caption(after), scene, after)


def _entry(line: str, where: str) -> Triplet:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON.") from error
    if not isinstance(parsed, dict):
        raise UserError(f'{where} is not an object with "before", "instruction" and "after".')
    for name in _FIELDS:
        value = parsed.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f'{where} has no text for "{name}".')
        if len(value) > LONGEST:
            raise UserError(f'{where} has more than {LONGEST} characters in "{name}".')
    return Triplet(*(parsed[name].strip() for name in _FIELDS))


def read_triplets(path: Path) -> list[Triplet]:
    """The triplets of a JSON-lines file with "before", "instruction" and "after" in each line; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is wrong; the sentence has the line's number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"The triplets cannot be read from {path.name}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not a text file in UTF-8.") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path.name} has no triplets in it.")
    return [_entry(line, f"Line {number} of {path.name}") for number, line in lines]
