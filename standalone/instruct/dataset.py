"""The folder of pairs: PNG files, `pairs.jsonl` with one line a triplet, `settings.json` with what made them.

A line is written after the triplet's images, so that a stop at any moment leaves whole triplets and at most half a
line, which is cut off when the work resumes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.errors import UserError
from lib_methods.files import read_json

MANIFEST, SETTINGS = "pairs.jsonl", "settings.json"


@dataclass(frozen=True)
class Pair:
    """Two image files and the instruction that leads from the first to the second."""

    before: Path
    after: Path
    instruction: str


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside the file, then renames: nobody ever sees half of it."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """A PNG of uint8 (height, width, 3)."""
    temporary = path.with_name(path.name + ".new")
    Image.fromarray(pixels).save(temporary, "PNG")
    os.replace(temporary, path)


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that it was made with the same settings.

    Raises:
        UserError: it holds pairs of other settings; the sentence names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists():
        try:
            known = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{SETTINGS} in {folder.name} cannot be read. Choose another folder.") from error
        wanted = json.loads(json.dumps(dict(settings)))
        if not isinstance(known, dict) or known != wanted:
            differ = [name for name in wanted if not isinstance(known, dict) or known.get(name) != wanted[name]]
            raise UserError(
                f"{folder.name} holds pairs made with other settings ({', '.join(differ) or 'of another version'}); "
                "choose another folder, or use the same settings to resume."
            )
    elif any(folder.iterdir()):
        raise UserError(f"{folder.name} holds files that this command did not make. Choose an empty folder.")
    else:
        write_whole(path, (json.dumps(dict(settings), indent=2) + "\n").encode())


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of the manifest; half a line at the end is left out. UserError for anything else that is wrong."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is not finished
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["pairs"], list) or not isinstance(entry["instruction"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"Line {number} of {MANIFEST} in {folder.name} is damaged.") from error
        entries.append(entry)
    return entries


def cut_half_line(folder: Path) -> None:
    """Removes what a stop left behind: half a line at the end of the manifest."""
    path = folder / MANIFEST
    if path.is_file() and not (data := path.read_bytes()).endswith(b"\n"):
        write_whole(path, data[: data.rfind(b"\n") + 1])


def append(folder: Path, entry: Mapping[str, Any]) -> None:
    """One more line."""
    with (folder / MANIFEST).open("ab") as file:
        file.write(json.dumps(dict(entry), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs of a folder. UserError: there are none, or an image is missing or lies outside of the folder."""
    pairs = []
    for entry in read_manifest(folder):
        for pair in entry["pairs"]:
            files = [pair.get(name) if isinstance(pair, dict) else None for name in ("before", "after")]
            for name in files:
                if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                    raise UserError(f"{MANIFEST} in {folder.name} names an image that is not in the folder.")
                if not (folder / name).is_file():
                    raise UserError(f"The image {name} is missing from {folder.name}.")
            pairs.append(Pair(folder / str(files[0]), folder / str(files[1]), entry["instruction"]))
    if not pairs:
        raise UserError(f"There are no pairs in {folder.name}. Generate some with make-instruct-data.")
    return pairs
