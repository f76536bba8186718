"""Directions as files: a folder of our own `.safetensors`, and the `.pt` pairs of the original project.

Nothing in a file is trusted.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_methods.checks import SettingsError
from lib_methods.errors import reason
from lib_methods.files import NamedFiles
from lib_methods.pix2pix_zero.directions import MAX_STRENGTH, Direction, DirectionError, Origin, combine, fit_tokens
from lib_methods.safetensors import NotFinite, write_tensors

SEPARATORS = re.compile(r"[,:|]")
FORMAT = "pix2pix_zero_direction"
_VERSION = 1
MAX_FILE_BYTES = 32 * 2**20
MAX_TOKENS, MAX_WIDTH = 77 * 32, 8192
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT_NAMES = ("F16", "BF16", "F32", "F64")
_UNREADABLE = "The file is not a direction: it is damaged, or something else."


@dataclass(frozen=True)
class Listed:
    """A direction of the library. origin and text_width are None where its file is damaged."""

    name: str
    origin: Origin | None
    text_width: int | None


def new_name(name: object) -> str:
    """A name for a new direction, as it is kept: without what stands between directions in "cat to dog: 1, a: -1".

    Raises `DirectionError`.
    """
    clean = DirectionLibrary.clean_name(name)
    if SEPARATORS.search(clean):
        raise DirectionError("A direction's name must not contain , : or |, which separate directions.")
    return clean


class DirectionLibrary(NamedFiles):
    """Directions in a folder."""

    kind, suffix, error = "direction", ".safetensors", DirectionError

    def read_name(self, file: Path) -> str:
        return read_record(file)[0]

    def save(self, name: str, direction: Direction) -> str:
        """Keep a direction under `name`, in place of an older one; returns the name as it is kept."""
        name = self.clean_name(name)
        save_direction(direction, self.path(name), name)
        return name

    def get(self, name: str) -> Direction:
        """The direction. Raises `DirectionError` if there is none of that name or its file is damaged."""
        file = self.find(name)
        try:
            return load_direction(file)
        except DirectionError:
            raise DirectionError(
                f'The direction "{name}" cannot be used: its file is damaged. Build it again or delete it.'
            ) from None

    def list(self) -> tuple[Listed, ...]:
        """All directions in alphabetical order; the damaged ones as well, so that they can be deleted."""
        listed, files = [], self.files()
        for name in self.names():
            try:
                _, origin, width = read_record(files[name])
                listed.append(Listed(name, origin, width))
            except DirectionError:
                listed.append(Listed(name, None, None))
        return tuple(listed)


def combined(text: str, library: DirectionLibrary) -> Direction:
    """The weighted sum that "cat to dog: 1, day to night: -0.5" means."""
    parts = []
    for part in text.split(","):
        if not part.strip():
            continue
        name, colon, weight = part.rpartition(":")
        if not colon:
            name, weight = part, "1"
        try:
            value = float(weight)
        except ValueError:  # a name with a colon in it
            name, value = part, 1.0
        if not -MAX_STRENGTH <= value <= MAX_STRENGTH:  # false for NaN, too
            raise SettingsError(f"The weight of a direction must be between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}.")
        parts.append((library.get(name.strip()), value))
    if len(parts) == 1 and parts[0][1] < 0:  # its record says which way it goes
        return combine([(parts[0][0].reversed(), -parts[0][1])])
    return combine(parts)


def save_direction(direction: Direction, path: str | os.PathLike[str], name: str = "") -> None:
    """Write a direction, its record and `name` as .safetensors, in one go: an older file of that name stays whole
    until the new one is.

    The file holds no date: the same direction gives the same bytes. Raises `DirectionError` if it cannot be written.
    """
    file, origin = Path(path), direction.origin
    record = {"version": _VERSION, "name": name, "text_width": direction.text_width, **asdict(origin)}
    metadata = {FORMAT: json.dumps(record, ensure_ascii=False)}
    tensors = {"context": direction.context.contiguous()}
    if direction.vector is not None:
        tensors["vector"] = direction.vector.contiguous()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, tensors, metadata, shared=True)
    except NotFinite as problem:
        raise DirectionError(f"The direction cannot be saved: {problem}") from None
    except OSError as error:
        raise DirectionError(f"The direction cannot be saved. {reason(error)}") from None


def load_direction(path: str | os.PathLike[str]) -> Direction:
    """Read a direction that `save_direction` wrote. Raises `DirectionError` for anything else."""
    return _read(path, with_tensors=True)[1]


def read_record(path: str | os.PathLike[str]) -> tuple[str, Origin, int]:
    """The name, the record and the text width of a direction's file, without its numbers; errors as above."""
    name, direction = _read(path, with_tensors=False)
    return name, direction.origin, direction.text_width


def load_original(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Direction:
    """The direction between two files of the original project, each the mean embedding of sentences about one word:
    a bare tensor (1, 77, 768) as `torch.save` writes it.

    The words are the files' names without their ending. Raises `DirectionError` for anything else.
    """
    before, after = _bare_tensor(source), _bare_tensor(target)
    if before.shape[1] != after.shape[1]:
        raise DirectionError("The two embeddings were made with different text encoders.")
    tokens = max(len(before), len(after))
    origin = Origin(Path(source).stem, Path(target).stem)
    return Direction(fit_tokens(after, tokens) - fit_tokens(before, tokens), origin)


def _read(path: str | os.PathLike[str], with_tensors: bool) -> tuple[str, Direction]:
    file = _existing(path)
    try:
        with safe_open(str(file), framework="pt") as opened:
            record: dict[str, Any] = json.loads((opened.metadata() or {})[FORMAT])
            names = set(opened.keys())
            if record["version"] != _VERSION or "context" not in names or not names <= {"context", "vector"}:
                raise DirectionError(_UNREADABLE)
            shapes = {name: opened.get_slice(name).get_shape() for name in names}
            types = {opened.get_slice(name).get_dtype() for name in names}
            origin = _origin(record)
            _check_shape(shapes["context"])
            if not types <= set(_FLOAT_NAMES) or len(shapes.get("vector", [1])) != 1:
                raise DirectionError(_UNREADABLE)
            if record["text_width"] != shapes["context"][1]:
                raise DirectionError(_UNREADABLE)
            if with_tensors:
                vector = opened.get_tensor("vector") if "vector" in names else None
                direction = Direction(opened.get_tensor("context"), origin, vector)
            else:
                direction = Direction(torch.zeros(1, shapes["context"][1]), origin)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DirectionError):
            raise
        raise DirectionError(_UNREADABLE) from None
    return str(record.get("name", "")), direction


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    try:
        if not file.is_file():
            raise FileNotFoundError
        size = file.stat().st_size
    except (OSError, ValueError):
        raise DirectionError("There is no such file.") from None
    if size > MAX_FILE_BYTES:
        raise DirectionError("The file is too large for a direction.")
    return file


def _origin(record: dict[str, Any]) -> Origin:
    texts = [record[key] for key in ("source", "target", "model")]
    counts = [record[key] for key in ("source_count", "target_count", "clip_skip")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not a text")
    if not all(type(count) is int and 0 <= count < 10**9 for count in counts):
        raise ValueError("not a count")
    return Origin(texts[0], texts[1], counts[0], counts[1], counts[2], texts[2])


def _check_shape(shape: Any) -> None:
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_TOKENS or not 1 <= shape[1] <= MAX_WIDTH:
        raise DirectionError("The file holds no direction: its table has another shape.")


def _bare_tensor(path: str | os.PathLike[str]) -> Tensor:
    """The embedding in a `.pt` file, (tokens, dim), float32.

    Only the zip format is read, nothing in it may be compressed, and torch's loader may build tensors only: its older
    formats have had holes, and a compressed file could unpack to any size.
    """
    file = _existing(path)
    sentence = (
        f'"{file.name[:80]}" is not an embedding of the original project: a single tensor (1, 77, 768) is expected.'
    )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        stored = sum(entry.file_size for entry in entries)
        if stored > MAX_FILE_BYTES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise DirectionError(sentence)
        tensor = torch.load(str(file), map_location="cpu", weights_only=True)
    except Exception as error:  # the loader fails in many ways on what is damaged or hostile
        if isinstance(error, DirectionError):
            raise
        raise DirectionError(sentence) from None
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.dtype not in _FLOATS:
        raise DirectionError(sentence)
    if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() > stored:
        raise DirectionError(sentence)
    if tensor.dim() != 3 or tensor.shape[0] != 1:
        raise DirectionError(sentence)
    _check_shape(tensor.shape[1:])
    return tensor[0].detach().float()
