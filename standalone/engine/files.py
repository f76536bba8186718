"""Reads checkpoint files: safetensors only, with a hash, and a plain word about everything else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from lib_methods.safetensors.header import PICKLED, check_name, read_header
from lib_methods.safetensors.tensors import read_tensors


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
        check_name(path)


def read_state(path: Path, name: str = "", only: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, on the CPU. name: what sentences call the file. only: which of the tensors.

    Raises CheckpointError in plain words.
    """
    read_header(path, name)
    state, _ = read_tensors(path, name)
    return state if only is None else {key: state[key] for key in only}
