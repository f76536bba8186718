"""Reads and writes .safetensors files. They are written tensor by tensor, so that nothing is held twice; whole or not
at all; and only with weights that a program can use. The layout is the published one, see `header`."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_methods.errors import CheckpointError, reason
from lib_methods.files import replacing
from lib_methods.safetensors.header import BITS

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
