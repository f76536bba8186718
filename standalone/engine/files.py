"""Reads checkpoint files: safetensors only, with a hash, and a plain word about everything else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lib_methods.errors import reason
from lib_methods.ldm_checkpoint import CheckpointProblem, read_yaml

from .errors import CheckpointError

PICKLED = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
PICKLE_REASON = (
    "is a pickled checkpoint: opening one can run any program that its author put into it, so it is refused. "
    "Get the .safetensors version of the model, or convert it on a machine that you can afford to lose."
)


def sha256_of(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal. Reads it in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_not_pickled(path: Path) -> None:
    """Raises CheckpointError when `path` is a pickle, by its name or by its first bytes."""
    if path.suffix.lower() in PICKLED:
        raise CheckpointError(f"{path.name} {PICKLE_REASON}")
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":
            return  # a .safetensors file; the length of its header, in front, may look like anything
        if head[:2] == b"PK" or (len(head) > 1 and head[0] == 0x80 and head[1] <= 5):
            raise CheckpointError(f"{path.name} {PICKLE_REASON}")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, on the CPU. Raises CheckpointError in plain words."""
    check_not_pickled(path)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"{path.name} is not a .safetensors file; only those and diffusers folders can be loaded."
        )
    try:
        return load_file(str(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path.name} is damaged or not complete; download it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read. {reason(error)}") from error


def read_config(checkpoint: Path) -> Mapping[str, Any] | None:
    """The parsed yaml with the checkpoint's name beside it, or None when there is none."""
    try:
        return read_yaml(checkpoint)
    except CheckpointProblem as problem:
        raise CheckpointError(str(problem)) from problem
