"""A run on the disk: its record (settings and plan, beside which it can be resumed), and its state.

The state is one .safetensors file, replaced as a whole, without pickle. It holds what the next step depends on: the
trained weights, the optimizer's state, the averaged weights, the order of the photos, and the number of steps done.
Noise and timesteps come from the seed and the step's number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout
from torch import Tensor

from lib_methods.dreambooth.settings import PATHS, TrainingSettings, from_json, to_json
from lib_methods.errors import UserError
from lib_methods.files import read_json, replacing
from lib_methods.safetensors import read_tensors, write_tensors

STATE = "state.safetensors"
VERSION = "1"


@dataclass(frozen=True)
class State:
    """parts: names to tensors, numbers, texts, None, and dicts of these. step: optimizer steps done."""

    step: int
    identity: str
    parts: dict[str, Any]


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A part for `json.dumps`, which refuses anything else, its tensors put into `tensors` under names that begin with
    `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
    return value


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given. Raises KeyError when a tensor is missing."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: unpack(item, tensors) for key, item in value["dict"]}


def save_state(folder: Path, state: State) -> None:
    """Puts the state in place of the last one, which stays until the new one is on the disk. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    tree = {name: pack(part, tensors, name) for name, part in state.parts.items()}
    metadata = {"version": VERSION, "step": str(state.step), "identity": state.identity, "parts": json.dumps(tree)}
    write_tensors(folder / STATE, tensors, metadata, finite=False)


def load_state(folder: Path, identity: str, older: str = "") -> State | None:
    """The last state; None when there is none yet. older: the identity that an older version gave the same run.

    Raises UserError when it is damaged, or of a run with another identity.
    """
    path = folder / STATE
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    try:
        if metadata["version"] != VERSION:
            raise UserError(f"{STATE} was written by another version of this program. Start training again.")
        if metadata["identity"] not in (identity, older or identity):
            raise UserError(f"{STATE} belongs to another run. Start again under another name.")
        tree = json.loads(metadata["parts"])
        return State(int(metadata["step"]), identity, {name: unpack(part, tensors) for name, part in tree.items()})
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{STATE} is damaged. Start training again.") from error


RECORD = "training.json"
CANCEL = "cancel"  # a file of this name in the run's folder stops it
LOCK = "lock"
FREE = frozenset((*PATHS, "sample_prompts", "sample_every", "save_every", "saved_as", "memory", "steps", "also_plain"))
"""May differ when a run is resumed: the steps do not depend on them, or they are compared by their content."""

_ADDED: dict[str, Any] = {
    "concepts": [],
    "caption_dropout": 0.0,
    "noise_offset": 0.0,
    "stages": "both",
    "small_image_noise": 1e-5,
}
"""Settings that older versions did not have: as they were then, they do not make another training."""
_DAMAGED = "training.json is damaged; start again under another name."
ANOTHER = "start again under another name, or remove this run's folder"


def _compared(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON values; their concepts without what is compared by its content."""
    values = to_json(settings)
    concepts = [{key: value for key, value in concept.items() if key not in PATHS} for concept in values["concepts"]]
    return {**values, "concepts": concepts}


def steps_are_free(settings: TrainingSettings) -> bool:
    """Whether a run may be made longer when it is resumed: nothing in it depends on where its end is."""
    return settings.schedule == "constant" and (not settings.train_text or settings.text_stop == 1)


def going_on(asked: TrainingSettings, before: Mapping[str, Any]) -> TrainingSettings:
    """The settings with which a recorded run is resumed when it is asked for with `asked` now.

    before: the record, with "asked" and "resolved" as `to_json` wrote them. Raises UserError, naming what
    differs, when the steps to come would not be those of the recorded training.
    """
    try:
        first, chosen = from_json(before["asked"]), from_json(before["resolved"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_DAMAGED) from error
    now, then = _compared(asked), _compared(first)
    changed = [name for name in now if now[name] != then[name]]
    differ = [name for name in changed if name not in FREE]
    if differ:
        names = ", ".join(name.replace("_", " ") for name in differ)
        raise UserError(f"This run was started with other settings ({names}). Use the same, or {ANOTHER}.")
    if "steps" in changed and not steps_are_free(chosen):
        raise UserError(
            "The number of steps cannot be changed, because this run's schedule depends on it. Use the "
            f"same, or {ANOTHER}."
        )
    if "sample_every" in changed and chosen.select_best:
        raise UserError(f"The best weights are chosen by the samples: give the same sample steps, or {ANOTHER}.")
    fresh = {name: getattr(asked, name) for name in changed if name in FREE and getattr(asked, name)}
    return replace(chosen, **{**fresh, **{name: getattr(asked, name) for name in PATHS}})


def planned(before: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The recorded plan's fields of these names. UserError when one is missing."""
    plan = before.get("plan")
    if not isinstance(plan, dict) or any(not isinstance(plan.get(name), (str, int)) for name in names):
        raise UserError(_DAMAGED)
    return {name: plan[name] for name in names}


def steps_depend_on(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that every step depends on, as JSON values; without the paths and what only shows or saves."""
    free = FREE if steps_are_free(settings) else FREE - {"steps"}
    values = _compared(settings)
    added = {name for name, value in _ADDED.items() if values[name] == value}
    return {name: value for name, value in values.items() if name not in free | added and name != "name"}


def digest(values: Mapping[str, Any]) -> str:
    """A short name for a set of JSON values; equal values, whatever their order, have equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes what the training was asked to do and how it does it. Raises OSError."""
    with replacing(folder / RECORD) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode("utf-8"))


def read_record(folder: Path) -> dict[str, Any] | None:
    """What write_record wrote; None when there is none. UserError when it is damaged."""
    try:
        record = read_json(folder / RECORD)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(_DAMAGED) from error
    if not isinstance(record, dict):
        raise UserError(_DAMAGED)
    return record


def take_folder(folder: Path, result: Path, lock: BaseFileLock, resume: bool) -> None:
    """Makes the run's folder and locks it. result: the file to come. UserError when it cannot be had."""
    if not resume and (folder / RECORD).exists():
        raise UserError(f"A run called {folder.name} already exists. Resume it with --resume, or {ANOTHER}.")
    if not resume and result.exists():
        raise UserError(f"{result.name} already exists. Choose another name, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (folder / CANCEL).unlink(missing_ok=True)
    except Timeout:
        raise UserError("Another process is training in this folder.") from None
    except OSError as error:
        raise UserError(f"The folder for the result cannot be written: {error.strerror}.") from error
