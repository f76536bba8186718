"""Reads and writes .safetensors files: the one reader of headers, and the one reader and writer of tensors.

The layout is the published one (github.com/huggingface/safetensors): 8 bytes with the header's length, the header as
JSON, and the tensors' bytes one after another without a gap. A header is read in milliseconds for any size. Files are
written tensor by tensor, so that nothing is held twice; whole or not at all; and only with weights that a program can
use.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_methods.errors import CheckpointError, reason
from lib_methods.files import replacing

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


NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {name: dtype for dtype, name in NAMES.items()}


class NotFinite(CheckpointError):
    """Weights that no program could use: nothing was written."""


@dataclass(frozen=True)
class Copied:
    """A tensor that is copied byte by byte from another file. `pieces` gives its bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    pieces: Callable[[], Iterator[bytes]]


TensorSource = Tensor | Callable[[], Tensor] | Copied


def read_tensors(path: Path, name: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata. name: what sentences call the file. Raises CheckpointError."""
    name = name or path.name
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name} is damaged.") from error
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read. {reason(error)}") from error


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another precision, on the CPU. Raises NotFinite where it is NaN, infinite, or too large for it."""
    found = tensor.detach().to("cpu", dtype).contiguous()
    if _finite(found):
        return found
    whole = tensor.detach().to("cpu")
    if _finite(whole):
        largest = float(whole.abs().max())
        raise NotFinite(
            f"'{name}' reaches {largest:.3g}, which is too large for {_WORDS.get(dtype, str(dtype))}, so nothing was "
            "written. Use bf16 or fp32 instead."
        )
    raise NotFinite(f"'{name}' has numbers that are not finite (NaN or infinite), so nothing was written.")


def write_tensors(
    path: Path,
    tensors: Mapping[str, TensorSource],
    metadata: Mapping[str, str] | None = None,
    *,
    finite: bool = True,
    shared: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the tensors in place of `path`, whose folder exists. Raises OSError, and NotFinite; `path` is then as
    before.

    A callable is asked for its tensor twice: first for type and shape, then when its turn comes. finite: whether
    numbers that are not finite are refused; only a program's own working files may have any. shared: as for
    `files.replacing`. progress: told the tensors done and all of them.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    looks = {name: _look(source) for name, source in tensors.items()}
    # the widest numbers first, as readers want every tensor at a multiple of its numbers' size
    order = sorted(tensors, key=lambda name: -BITS[looks[name][0]])
    offset = 0
    for name in order:
        dtype, shape, size = looks[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    free = shutil.disk_usage(path.parent).free
    if free < offset + len(text):
        told = f"the file needs {offset / 2**30:.1f} GiB, and the disk has {free / 2**30:.1f} GiB left"
        raise OSError(0, told)  # without the number of a full disk, whose sentence says less
    with replacing(path, shared=shared) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for done, name in enumerate(order, 1):
            source = tensors[name]
            if isinstance(source, Copied):
                for piece in source.pieces():
                    file.write(piece)
            else:
                tensor = source if isinstance(source, Tensor) else source()
                if finite:
                    tensor = rounded(name, tensor, tensor.dtype)
                file.write(_bytes_of(tensor))
            if progress is not None:
                progress(done, len(order))


_WORDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are. A sum is not finite when one of them is not, and needs no memory."""
    if not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # few operations exist for 8 bits
        tensor = tensor.float()
    return bool(tensor.sum(dtype=torch.float64).isfinite())


def _look(source: TensorSource) -> tuple[str, tuple[int, ...], int]:
    if isinstance(source, Copied):
        return source.dtype, source.shape, source.size
    tensor = source if isinstance(source, Tensor) else source()
    return NAMES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size()


def _bytes_of(tensor: Tensor) -> memoryview:
    if sys.byteorder != "little":
        raise CheckpointError(
            "This machine is big-endian, and safetensors files are little-endian. Use another machine."
        )
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
