"""Reads checkpoint files: safetensors only, with a hash, and a plain word about everything else."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lib_methods.errors import reason
from lib_methods.ldm_checkpoint import read_yaml
from lib_methods.safetensors_header import PICKLED, FileProblem, check_name, read_header

from .errors import CheckpointError

__all__ = ["PICKLED", "check_not_pickled", "read_config", "read_state", "sentences", "sha256_of"]


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Passes on what the readers of files say as a CheckpointError."""
    try:
        yield
    except FileProblem as problem:
        raise CheckpointError(str(problem)) from problem


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the file, or of several one after another, in hexadecimal. Reads them in pieces of 1 MiB."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def check_not_pickled(path: Path) -> None:
    """Raises CheckpointError when the name of `path` is that of a pickle."""
    if path.suffix.lower() in PICKLED:
        with sentences():
            check_name(path)


def read_state(path: Path, name: str = "", only: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, on the CPU. name: what sentences call the file. only: which of the tensors.

    Raises CheckpointError in plain words.
    """
    name = name or path.name
    with sentences():
        read_header(path, name)
    try:
        state = load_file(str(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name} is damaged; download it again.") from error
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read. {reason(error)}") from error
    return state if only is None else {key: state[key] for key in only}


def read_config(checkpoint: Path) -> Mapping[str, Any] | None:
    """The parsed yaml with the checkpoint's name beside it, or None when there is none."""
    with sentences():
        return read_yaml(checkpoint)
