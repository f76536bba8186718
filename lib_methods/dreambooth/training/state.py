"""The state of a training on the disk: one .safetensors file, replaced as a whole, without pickle.

It holds what the next step depends on: the trained weights, the optimizer's state, the averaged weights, the order of
the photos, and the number of steps done. Noise and timesteps come from the seed and the step's number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.files import read_json, replacing
from lib_methods.safetensors.tensors import read_tensors, write_tensors

STATE = "state.safetensors"
RECORD = "training.json"
VERSION = "1"


@dataclass(frozen=True)
class State:
    """parts: names to nests of dicts, lists, tensors, numbers, texts and None. step: optimizer steps done."""

    step: int
    identity: str
    parts: dict[str, Any]


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A nest as JSON, its tensors put into `tensors` under names that begin with `name`. Dicts keep their keys' types.

    Raises TypeError for anything that JSON and tensors cannot hold, so that nothing is lost silently.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, (int, str)) for key in value):
            raise TypeError(f"{name} has keys that are neither numbers nor texts")
        return {"dict": [[key, pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, tensors, f"{name}/{index}") for index, item in enumerate(value)]}
    raise TypeError(f"{name} is a {type(value).__name__}, which a state cannot hold")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given. Raises KeyError when a tensor is missing."""
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in inside}
    items = [unpack(item, tensors) for item in inside]
    return items if kind == "list" else tuple(items)


def save_state(folder: Path, state: State) -> None:
    """Puts the state in place of the last one, which stays until the new one is on the disk. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    tree = {name: pack(part, tensors, name) for name, part in state.parts.items()}
    metadata = {"version": VERSION, "step": str(state.step), "identity": state.identity, "parts": json.dumps(tree)}
    write_tensors(folder / STATE, tensors, metadata, finite=False)


def load_state(folder: Path, identity: str, older: str = "") -> State | None:
    """The last state; None when there is none yet. older: the identity that an older version gave the same training.

    Raises DreamBoothError when it is damaged, or of a training with another identity.
    """
    path = folder / STATE
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    try:
        if metadata["version"] != VERSION:
            raise DreamBoothError(f"{STATE} was written by another version of this program; start training again.")
        if metadata["identity"] not in (identity, older or identity):
            raise DreamBoothError(f"{STATE} belongs to another training; start again under another name.")
        tree = json.loads(metadata["parts"])
        return State(int(metadata["step"]), identity, {name: unpack(part, tensors) for name, part in tree.items()})
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, DreamBoothError):
            raise
        raise DreamBoothError(f"{STATE} is damaged; start training again.") from error


def digest(values: Mapping[str, Any]) -> str:
    """A short name for a set of JSON values; equal values, whatever their order, have equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes what the training was asked to do and how it does it. Raises OSError."""
    with replacing(folder / RECORD) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode("utf-8"))


def read_record(folder: Path) -> dict[str, Any] | None:
    """What write_record wrote; None when there is none. DreamBoothError when it is damaged."""
    try:
        record = read_json(folder / RECORD)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DreamBoothError(f"{RECORD} is damaged; start again under another name.") from error
    if not isinstance(record, dict):
        raise DreamBoothError(f"{RECORD} is damaged; start again under another name.")
    return record
