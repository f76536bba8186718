"""The files that a training run keeps for itself; what goes wrong with them is a sentence."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.files import replacing


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


def write_whole(path: Path, data: bytes, what: str = "") -> Path:
    """Writes `data` in place of `path`, whole or not at all, making its folder.

    what: put before the file's name in the error. Raises DreamBoothError when the disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        reason = error.strerror or "the disk may be full"
        raise DreamBoothError(f"{what} {path.name} cannot be written: {reason}.".strip()) from error
    return path
