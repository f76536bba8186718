"""Writes .safetensors files tensor by tensor, so that nothing is held twice, and so that a stop leaves the old file.

The layout is the published one (github.com/huggingface/safetensors): 8 bytes with the header's length, the header as
JSON, and the tensors' bytes one after another.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib_methods.files import replacing

from .errors import DreamBoothError

TensorSource = Tensor | Callable[[], Tensor]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, TensorSource], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the tensors in place of `path`. Raises OSError; `path` is then as before.

    A callable is asked for its tensor twice: first for type and shape, then when its turn comes.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    looks = {name: _look(source) for name, source in tensors.items()}
    # the widest numbers first, as readers want every tensor at a multiple of its numbers' size
    order = sorted(tensors, key=lambda name: -looks[name][0].itemsize)
    offset = 0
    for name in order:
        dtype, shape = looks[name]
        size = dtype.itemsize * shape.numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            source = tensors[name]
            file.write(_bytes_of(source if isinstance(source, Tensor) else source()))


def _look(source: TensorSource) -> tuple[torch.dtype, torch.Size]:
    tensor = source if isinstance(source, Tensor) else source()
    return tensor.dtype, tensor.shape


def _bytes_of(tensor: Tensor) -> memoryview:
    if sys.byteorder != "little":
        raise DreamBoothError("This machine keeps numbers in another order of bytes than safetensors files.")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a .safetensors file. DreamBoothError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise DreamBoothError(f"{path.name} is damaged.") from error
    except OSError as error:
        raise DreamBoothError(f"{path.name} cannot be read: {error.strerror or 'input or output error'}.") from error
