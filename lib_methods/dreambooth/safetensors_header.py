"""What a .safetensors file holds, from its header alone: names, shapes and precisions, in milliseconds for any size.

The layout is the published one (github.com/huggingface/safetensors): 8 bytes with the header's length, the header as
JSON, and the tensors' bytes one after another without a gap.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_methods.dreambooth.errors import DreamBoothError

_PICKLED = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_LARGEST_HEADER = 100_000_000  # what safetensors itself takes


@dataclass(frozen=True)
class TensorHead:
    """A tensor of a file. size: in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(path: Path, name: str = "") -> dict[str, TensorHead]:
    """The tensors of a .safetensors file by name. name: what sentences call the file, its own by default.

    Raises DreamBoothError: it is not there, a pickle, damaged or not complete.
    """
    name = name or path.name
    if path.suffix.lower() in _PICKLED:
        raise DreamBoothError(_pickled(name))
    if path.suffix.lower() != ".safetensors":
        raise DreamBoothError(
            f"The base model {name} is not a .safetensors file; only those and diffusers folders can be trained."
        )
    try:
        whole = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            if start[8:] != b"{" and (start[:2] == b"PK" or (len(start) > 1 and start[0] == 0x80 and start[1] <= 5)):
                raise DreamBoothError(_pickled(name))
            length = struct.unpack("<Q", start[:8])[0] if len(start) > 8 else 0
            if not 2 <= length <= min(_LARGEST_HEADER, whole - 8):
                raise DreamBoothError(_damaged(name))
            text = start[8:] + file.read(length - 1)
    except FileNotFoundError:
        raise DreamBoothError(f"The base model {name} is not there; choose a checkpoint file or a folder.") from None
    except OSError as error:
        reason = error.strerror or "input or output error"
        raise DreamBoothError(f"The base model {name} cannot be read: {reason}.") from None
    try:
        header = json.loads(text)
        tensors = {key: _head(value) for key, value in header.items() if key != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise DreamBoothError(_damaged(name)) from None
    if 8 + length + sum(tensor.size for tensor in tensors.values()) != whole:
        raise DreamBoothError(_damaged(name))
    return tensors


def _head(entry: Mapping[str, Any]) -> TensorHead:
    first, last = entry["data_offsets"]
    shape = tuple(int(side) for side in entry["shape"])
    if last < first or any(side < 0 for side in shape):
        raise ValueError(entry)
    return TensorHead(str(entry["dtype"]), shape, int(last) - int(first))


def _pickled(name: str) -> str:
    return (
        f"The base model {name} is a pickled checkpoint: opening one can run any program that its author put into it, "
        "so it is not trained. Get the .safetensors version of the model."
    )


def _damaged(name: str) -> str:
    return f"The base model {name} is damaged or not complete; download it again."
