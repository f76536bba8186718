"""The settings of a run, kept beside its state, and whether it can be resumed with the current ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.settings import Concept, TrainingSettings
from lib_methods.files import read_json, replacing

RECORD = "training.json"
CANCEL = "cancel"  # a file of this name in the run's folder stops it
LOCK = "lock"
PATHS = ("photos", "base", "out", "class_folder", "continue_from")
_MAY_LACK = ("class_folder", "continue_from")
FREE = frozenset((*PATHS, "sample_prompts", "sample_every", "save_every", "saved_as", "memory", "steps"))
"""May differ when a run is resumed: the steps do not depend on them, or they are compared by their content."""

_ADDED: dict[str, Any] = {"concepts": [], "caption_dropout": 0.0, "noise_offset": 0.0}
"""Settings that older versions did not have: as they were then, they do not make another training."""
_DAMAGED = "training.json is damaged; start again under another name."
ANOTHER = "start again under another name, or remove this run's folder"


def to_json(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON values; paths are absolute."""
    values = asdict(settings)
    for part in (values, *values["concepts"]):
        for name in set(PATHS) & set(part):
            part[name] = None if part[name] is None else str(Path(part[name]).expanduser().resolve())
    values["sample_prompts"] = list(settings.sample_prompts)
    values["concepts"] = list(values["concepts"])
    return values


def from_json(values: Mapping[str, Any]) -> TrainingSettings:
    """The settings of `to_json`, or of a file that somebody wrote.

    Raises DreamBoothError for names that there are not and for what is missing, SettingsError for wrong values.
    """
    known = {field.name for field in fields(TrainingSettings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise DreamBoothError(f"There is no setting called {unknown[0]}.")
    missing = [name for name in ("photos", "base", "out", "name", "class_noun") if not values.get(name)]
    if missing:
        raise DreamBoothError(f"The setting {missing[0]} is missing.")
    given = dict(values)
    _take_paths(given)
    given["concepts"] = _concepts(given.get("concepts", []))
    prompts = given.get("sample_prompts", [])
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
        raise DreamBoothError("The setting sample_prompts must be a list of texts.")
    given["sample_prompts"] = tuple(prompts)
    for field in fields(TrainingSettings):
        if field.type == "float" and isinstance(given.get(field.name), int) and not isinstance(given[field.name], bool):
            given[field.name] = float(given[field.name])
        if field.type == "str" and not isinstance(given.get(field.name, ""), str):
            raise DreamBoothError(f"The setting {field.name} must be a text.")
    return TrainingSettings(**given)


def _take_paths(values: dict[str, Any]) -> None:
    for name in [name for name in PATHS if name in values]:
        if values[name] in (None, "") and name in _MAY_LACK:
            values[name] = None
        elif isinstance(values[name], str):
            values[name] = Path(values[name])
        else:
            raise DreamBoothError(f"The setting {name} must be a path.")


def _concepts(given: Any) -> tuple[Concept, ...]:
    """The concepts of `to_json`."""
    known = {field.name for field in fields(Concept)}
    if not isinstance(given, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in given):
        raise DreamBoothError("The setting concepts must be a list of objects with photos and class_noun.")
    concepts = []
    for entry in given:
        if set(entry) - known or not entry.get("photos") or not entry.get("class_noun"):
            raise DreamBoothError(f"A concept needs photos and class_noun, and may have: {', '.join(sorted(known))}.")
        values = dict(entry)
        _take_paths(values)
        concepts.append(Concept(**values))
    return tuple(concepts)


def without_paths(concepts: Any) -> list[dict[str, Any]]:
    """The concepts of `to_json` without what is compared by its content."""
    return [{name: value for name, value in concept.items() if name not in PATHS} for concept in concepts]


def steps_are_free(settings: TrainingSettings) -> bool:
    """Whether a run may be made longer when it is resumed: nothing in it depends on where its end is."""
    return settings.schedule == "constant" and (not settings.train_text or settings.text_stop == 1)


def going_on(asked: TrainingSettings, before: Mapping[str, Any]) -> TrainingSettings:
    """The settings with which a recorded run is resumed when it is asked for with `asked` now.

    before: the record, with "asked" and "resolved" as `to_json` wrote them. Raises DreamBoothError, naming what
    differs, when the steps to come would not be those of the recorded training.
    """
    try:
        first, chosen = from_json(before["asked"]), from_json(before["resolved"])
    except (KeyError, TypeError, ValueError) as error:
        raise DreamBoothError(_DAMAGED) from error
    now, then = to_json(asked), to_json(first)
    for values in (now, then):
        values["concepts"] = without_paths(values["concepts"])
    changed = [name for name in now if now[name] != then[name]]
    differ = [name for name in changed if name not in FREE]
    if differ:
        names = ", ".join(name.replace("_", " ") for name in differ)
        raise DreamBoothError(f"This run was started with other settings ({names}). Use the same, or {ANOTHER}.")
    if "steps" in changed and not steps_are_free(chosen):
        raise DreamBoothError(
            "The number of steps cannot be changed, because this run's schedule depends on it. Use the "
            f"same, or {ANOTHER}."
        )
    if "sample_every" in changed and chosen.select_best:
        raise DreamBoothError(f"The best weights are chosen by the samples: give the same sample steps, or {ANOTHER}.")
    fresh = {name: getattr(asked, name) for name in changed if name in FREE and getattr(asked, name)}
    return replace(chosen, **{**fresh, **{name: getattr(asked, name) for name in PATHS}})


def planned(before: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The recorded plan's fields of these names. DreamBoothError when one is missing."""
    plan = before.get("plan")
    if not isinstance(plan, dict) or any(not isinstance(plan.get(name), (str, int)) for name in names):
        raise DreamBoothError(_DAMAGED)
    return {name: plan[name] for name in names}


def steps_depend_on(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that every step depends on, as JSON values; without the paths and what only shows or saves."""
    free = FREE if steps_are_free(settings) else FREE - {"steps"}
    values = to_json(settings)
    values["concepts"] = without_paths(values["concepts"])
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


def take_folder(folder: Path, result: Path, lock: BaseFileLock, resume: bool) -> None:
    """Makes the run's folder and locks it. result: the file to come. DreamBoothError when it cannot be had."""
    if not resume and (folder / RECORD).exists():
        raise DreamBoothError(f"A run called {folder.name} already exists. Resume it with --resume, or {ANOTHER}.")
    if not resume and result.exists():
        raise DreamBoothError(f"{result.name} already exists. Choose another name, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (folder / CANCEL).unlink(missing_ok=True)
    except Timeout:
        raise DreamBoothError("Another process is training in this folder.") from None
    except OSError as error:
        raise DreamBoothError(f"The folder for the result cannot be written: {error.strerror}.") from error
