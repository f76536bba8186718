"""Reads a .safetensors file's header: names, shapes and precisions, in milliseconds for any size.

The layout is the published one (github.com/huggingface/safetensors): 8 bytes with the header's length, the header as
JSON, and the tensors' bytes one after another without a gap.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_methods.errors import CheckpointError, reason

PICKLED = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
LARGEST_HEADER = 100_000_000  # what safetensors itself takes
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_UNFINISHED = {".crdownload", ".part", ".partial", ".download", ".aria2", ".incomplete", ".tmp"}
_FOREIGN = (  # by their first bytes
    (b"GGUF", "is a GGUF file (quantised weights), which cannot be read. Get the .safetensors version of the model."),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself. Download it, or run `git lfs pull`."),
    (b"\x89PNG", "is an image, not a .safetensors file."),
    (b"\xff\xd8\xff", "is an image, not a .safetensors file."),
    (b"RIFF", "is an image, not a .safetensors file."),
    (b"\x1f\x8b", "is a gzip archive, not a .safetensors file. Unpack it first."),
    (b"7z\xbc\xaf", "is a 7z archive, not a .safetensors file. Unpack it first."),
    (b"Rar!", "is a RAR archive, not a .safetensors file. Unpack it first."),
)


@dataclass(frozen=True)
class TensorHead:
    """A tensor of a file. size: in bytes. start: where its bytes begin, counted from the first tensor's."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    start: int = 0

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return "F" in self.dtype


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, and its metadata. data: where in the file the tensors' bytes begin."""

    tensors: Mapping[str, TensorHead]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data: int = 0


def read_header(path: Path, name: str = "") -> Header:
    """The header of a .safetensors file. name: what sentences call the file, its own by default.

    Raises CheckpointError with the cause: it is missing, empty, cut off, a pickle, a web page, a Git LFS pointer ...
    """
    name = name or path.name
    check_name(path, name)
    try:
        whole = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            length = struct.unpack("<Q", start[:8])[0] if len(start) > 8 else 0
            if start[8:9] != b"{" or not 2 <= length <= LARGEST_HEADER:
                raise CheckpointError(f"{name} {_cause(start, whole)}")
            if length > whole - 8:
                raise CheckpointError(f"{name} is incomplete: it ends within its header. Download it again.")
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{name} does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read. {reason(error)}") from None
    try:
        tensors, metadata = _parse(text)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError(f"{name} {_DAMAGED}") from None
    end = 8 + length + sum(tensor.size for tensor in tensors.values())
    if end > whole:
        raise CheckpointError(f"{name} {_cut(whole, end)}")
    if end < whole:
        raise CheckpointError(f"{name} {_DAMAGED}")
    return Header(tensors, metadata, 8 + length)


def check_name(path: Path, name: str = "") -> None:
    """Raises CheckpointError when the file's name alone says that it is no .safetensors file."""
    name, suffix = name or path.name, path.suffix.lower()
    if suffix in PICKLED:
        raise CheckpointError(f"{name} {_PICKLE}")
    if suffix in _UNFINISHED:
        raise CheckpointError(f"{name} is an unfinished download; wait until it is complete, or download it again.")
    if suffix == ".gguf":
        raise CheckpointError(f"{name} {_FOREIGN[0][1]}")
    if suffix != ".safetensors":
        raise CheckpointError(f"{name} is not a .safetensors file; only those and diffusers folders can be loaded.")


def _parse(text: bytes) -> tuple[dict[str, TensorHead], dict[str, str]]:
    """As strict as safetensors itself. Raises ValueError and its kin."""
    header = json.loads(text)
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(metadata)
    tensors = {key: _head(value) for key, value in header.items()}
    end = 0
    for head in sorted(tensors.values(), key=lambda head: (head.start, head.size)):
        if head.start != end:
            raise ValueError(head)
        end += head.size
    return tensors, metadata


def _head(entry: Mapping[str, Any]) -> TensorHead:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and 0 <= number < 2**63 for number in (first, last, *shape)):
        raise ValueError(entry)
    if (last - first) * 8 != math.prod(shape) * BITS[entry["dtype"]]:
        raise ValueError(entry)
    return TensorHead(str(entry["dtype"]), shape, last - first, first)


_DAMAGED = "is damaged; download it again."
_PICKLE = (
    "is a pickled checkpoint: opening one can run any code its author put into it, so it is refused. "
    "Get the .safetensors version of the model."
)


def _cause(start: bytes, whole: int) -> str:
    """What a file is whose first bytes are not those of a header."""
    if whole == 0:
        return "is empty; download it again."
    if start[:2] == b"PK" or (len(start) > 1 and start[0] == 0x80 and start[1] <= 5):
        return _PICKLE
    for magic, sentence in _FOREIGN:
        if start.startswith(magic):
            return sentence
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")):
        return "is a web page, not a model: the site probably asked for a login. Download it again in the browser."
    if text.startswith((b"{", b"[")) or (text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text)):
        return "is a text file, not a model: the site probably answered with a message. Download the file again."
    return _DAMAGED


def _cut(whole: int, end: int) -> str:
    if _size(whole) == _size(end):
        return f"is incomplete: {end - whole} bytes of {_size(end)} are missing. Download it again."
    return f"is incomplete: it has {_size(whole)} of {_size(end)}. Download it again."


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
