"""Reads the .safetensors files that a training keeps for itself."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lib_methods.dreambooth.errors import DreamBoothError


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
