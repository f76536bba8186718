"""A folder of ready directions, each a .safetensors file that knows its name and what it was made from.

File names are made from the direction's name, but never are the name (see the presets of FABRIC). Files that a user
puts into the folder are listed, too, by the name that they hold or else by their file's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_methods.files import hashed_file_name
from lib_methods.pix2pix_zero.direction_files import load_direction, read_record, save_direction
from lib_methods.pix2pix_zero.directions import Direction, DirectionError, Embed, Origin, make_direction
from lib_methods.pix2pix_zero.sentences import OBJECT, built_in_sentences
from lib_methods.webui import names
from lib_methods.webui.names import MAX_NAME

SUFFIX = ".safetensors"
SEPARATORS = re.compile(r"[,:|]")


@dataclass(frozen=True)
class Listed:
    """A direction of the library. origin and text_width are None where its file is damaged."""

    name: str
    origin: Origin | None
    text_width: int | None


def clean_name(name: object) -> str:
    """The name as it is kept, see `lib_methods.webui.names`. Raises `DirectionError`."""
    return names.clean_name(name, "direction", DirectionError)


def new_name(name: object) -> str:
    """A name for a new direction, as it is kept: without what stands between directions in "cat to dog: 1, a: -1".

    Raises `DirectionError`.
    """
    clean = clean_name(name)
    if SEPARATORS.search(clean):
        raise DirectionError("A direction's name must not contain , : or |, which separate directions.")
    return clean


class DirectionLibrary:
    """Directions in `folder`, which is made when the first one is saved."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def build(
        self,
        name: str,
        source: str,
        target: str,
        embed: Embed,
        *,
        kind: str = OBJECT,
        sentences: tuple[Sequence[str], Sequence[str]] | None = None,
        clip_skip: int = 1,
        model: str = "",
        progress: Callable[[int, int], bool] | None = None,
    ) -> Direction:
        """Make a direction and keep it under `name`, in place of an older one.

        sentences: those about source and target; None takes the built-in ones of that kind.
        Errors as in `make_direction`; nothing is written then.
        """
        name = clean_name(name)
        before, after = sentences or (built_in_sentences(source, kind), built_in_sentences(target, kind))
        direction = make_direction(
            source, target, before, after, embed, clip_skip=clip_skip, model=model, progress=progress
        )
        self.save(name, direction)
        return direction

    def save(self, name: str, direction: Direction) -> str:
        """Keep a direction under `name`, in place of an older one; returns the name as it is kept."""
        name = clean_name(name)
        save_direction(direction, self._path(name), name)
        return name

    def get(self, name: str) -> Direction:
        """The direction. Raises `DirectionError` if there is none of that name or its file is damaged."""
        name = clean_name(name)
        file = self._files().get(name)
        if file is None:
            raise DirectionError(f'There is no direction "{name}".')
        try:
            return load_direction(file)
        except DirectionError:
            raise DirectionError(
                f'The direction "{name}" cannot be used: its file is damaged. Build it again or delete it.'
            ) from None

    def delete(self, name: str) -> bool:
        """Remove a direction; False if there was none."""
        name = clean_name(name)
        file = self._files().get(name)
        if file is None:
            return False
        try:
            file.unlink()
        except FileNotFoundError:
            return False
        except OSError:
            raise DirectionError(
                f'The direction "{name}" could not be deleted. Close programs that use its file.'
            ) from None
        return True

    def list(self) -> tuple[Listed, ...]:
        """All directions in alphabetical order; the damaged ones as well, so that they can be deleted."""
        listed = []
        for name, file in self._files().items():
            try:
                _, origin, width = read_record(file)
                listed.append(Listed(name, origin, width))
            except DirectionError:
                listed.append(Listed(name, None, None))
        return tuple(sorted(listed, key=lambda entry: (entry.name.casefold(), entry.name)))

    def _files(self) -> dict[str, Path]:
        """The files by the names that they go by. Every name comes from here: none is ever joined to a path."""
        try:
            entries = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_file())
        except OSError:  # no folder yet: nothing was saved
            return {}
        found: dict[str, Path] = {}
        for entry in entries:
            stem, suffix = os.path.splitext(entry)
            if suffix.casefold() != SUFFIX or stem.startswith("."):
                continue
            file = self.folder / entry
            try:
                name = clean_name(read_record(file)[0])
            except DirectionError:
                name = ""
            # What we saved goes first: a copy of a file holds the same name, and is told apart by its file's.
            if name and self._path(name).name == entry:
                if name in found:
                    found[_unused(found[name].stem, found)] = found[name]
                found[name] = file
                continue
            found[name if name and name not in found else _unused(stem, found)] = file
        return found

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashed_file_name('direction', name)}{SUFFIX}"


def _unused(stem: str, names: dict[str, Path]) -> str:
    """A name for a file that holds none, or one that is taken: its stem as far as it can be seen, numbered."""
    try:
        base = clean_name(stem[:MAX_NAME])
    except DirectionError:
        base = "damaged"
    name, number = base, 2
    while name in names:
        name = f"{base[: MAX_NAME - 6]} ({number})"
        number += 1
    return name
