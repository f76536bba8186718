"""The kinds of jobs, and the files of a run that a tab starts: what outlives the page and the host."""

from __future__ import annotations

import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib_methods.errors import UserError
from lib_methods.files import read_json as read_file
from lib_methods.files import replacing

LOG = "training.jsonl"
_CURRENT = ".current.json"  # no training's name begins with a dot
_CURRENT_BEFORE = "current.json"  # where it was; a run called "current" has its record there


@dataclass(frozen=True)
class Kind:
    """What a job does. verb: of run.py. title: of its tab. name: what sentences call it. runs: the folder that holds
    those of its runs. state: the file in a run's folder that it can be resumed from. packages: their folder, which the
    kinds of one host share. spare: how to need less memory."""

    verb: str
    title: str
    name: str
    runs: str
    state: str
    packages: str
    spare: str


TRAINING = Kind(
    verb="train-dreambooth",
    title="DreamBooth",
    name="Training",
    runs="trainings",
    state="training.json",
    packages="packages",
    spare="a LoRA, a smaller resolution or a lower memory limit",
)
CASCADE = Kind(
    verb="cascade",
    title="Cascade",
    name="The cascade",
    runs="images",
    state="request.json",
    packages="../dreambooth/packages",
    spare="one part at a time, a smaller batch or fp16",
)
KINDS = {kind.verb: kind for kind in (TRAINING, CASCADE)}


@dataclass(frozen=True)
class JobFiles:
    """The files of the run called `name`, all below `root`."""

    root: Path
    name: str
    kind: Kind = TRAINING

    @classmethod
    def of(cls, record: Path, kind: Kind = TRAINING) -> JobFiles:
        """Those of a record's path, as `record` gives it."""
        return cls(record.parent.parent, record.name.removesuffix(".json"), kind)

    @property
    def record(self) -> Path:
        return self.root / "jobs" / f"{self.name}.json"

    @property
    def settings(self) -> Path:
        """The job's settings, in one file."""
        return self.root / "jobs" / f"{self.name}.settings"

    @property
    def lock(self) -> Path:
        """Held by the job's process."""
        return self.root / "jobs" / f"{self.name}.lock"

    @property
    def console(self) -> Path:
        """What the process prints."""
        return self.root / "jobs" / f"{self.name}.log"

    @property
    def notes(self) -> Path:
        """Events before the job's own log begins."""
        return self.root / "jobs" / f"{self.name}.events"

    @property
    def photos(self) -> Path:
        return self.root / "photos" / self.name

    @property
    def out(self) -> Path:
        """Where results go: the same for all runs, which share the images of the classes, or text embeddings."""
        return self.root / self.kind.runs

    @property
    def folder(self) -> Path:
        """The run's own: its state, its log, its images."""
        return self.out / self.name

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def cancel(self) -> Path:
        """While this file is there, the job stops at the end of its step."""
        return self.folder / "cancel"

    @property
    def packages(self) -> Path:
        return Path(os.path.normpath(self.root / self.kind.packages))

    def note(self, event: str, **values: Any) -> None:
        """Adds an event to `notes`."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass
class Record:
    """What became of a run. status: "waiting", "running", "done", "cancelled" or "failed".

    error: a sentence, where it failed. results: the names of the files that the host now has. prompt: one that
    generates the subject. kind: "LoRA", "full" or "cascade". times in seconds since 1970.
    """

    name: str
    kind: str
    status: str = "waiting"
    error: str = ""
    results: list[str] = field(default_factory=list)
    prompt: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.status in ("done", "cancelled", "failed")

    @property
    def result(self) -> str:
        """The model's file, or a cascade's folder; "" when there is none."""
        return self.results[0] if self.results else ""

    @property
    def usage(self) -> str:
        """What to write into a prompt: for a LoRA with the tag that the host loads it by."""
        tag = f" <lora:{self.result.removesuffix('.safetensors')}:1>" if self.kind == "LoRA" and self.result else ""
        return f"{self.prompt}{tag}"


def is_held(lock: Path) -> bool:
    """Whether some process, this one included, holds the lock; it ends with its process, however that ends."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be opened: then nobody could lock it
        return False


def save_record(files: JobFiles, record: Record) -> None:
    """Keeps the record, and makes it the one that the page shows. Raises OSError."""
    write_json(files.record, asdict(record))
    write_json(files.root / "jobs" / _CURRENT, {"name": record.name})


def load_record(files: JobFiles) -> Record | None:
    """The record; None where there is none that can be read."""
    content = read_json(files.record)
    known = {entry.name for entry in fields(Record)}
    try:
        return Record(**{key: value for key, value in content.items() if key in known})
    except TypeError:
        return None


def current_name(root: Path) -> str:
    """The name of the run that the page shows; "" before the first."""
    kept = read_json(root / "jobs" / _CURRENT) or read_json(root / "jobs" / _CURRENT_BEFORE)
    name = kept.get("name", "")
    return name if isinstance(name, str) else ""


def all_records(root: Path) -> list[Record]:
    """All runs, the newest first."""
    records = [record for name in _recorded(root) if (record := load_record(JobFiles(root, name))) is not None]
    return sorted(records, key=lambda record: -record.started)


def _recorded(root: Path) -> list[str]:
    return [path.name.removesuffix(".json") for path in (root / "jobs").glob("*.json") if path.name != _CURRENT]


def names(root: Path, kind: Kind = TRAINING) -> set[str]:
    """The names that are taken, with case folded, as Windows and macOS do not tell "Rex" from "rex"."""
    out = JobFiles(root, "", kind).out
    found = [*_recorded(root), *(path.name for path in out.iterdir())] if out.is_dir() else _recorded(root)
    return {unicodedata.normalize("NFC", name).casefold() for name in found}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        content = read_file(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8"))


SIDECARS = (".json", ".preview.png", ".png", ".yaml")


def deliver_to(folder_of: Callable[[str], Path]) -> Callable[[JobFiles, Mapping[str, Any], Sequence[str]], list[str]]:
    """What `Jobs` wants. folder_of: the host's folder for "LoRA", "full" or "cascade"."""

    def deliver(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        record = load_record(files)
        kind = "cascade" if record is not None and record.kind == "cascade" else settings["kind"]
        move = move_cascade if kind == "cascade" else move_results
        return move(files, settings, names, folder_of(kind))

    return deliver


def move_cascade(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str], folder: Path) -> list[str]:
    """Moves a trained cascade's folder into `folder`; returns its name there. Raises UserError."""
    source = files.out / Path(next(iter(names), "")).name
    if not names or not source.is_dir():
        raise UserError("Training ended without a result. Its console file says why.")
    number, target = 1, folder / source.name
    while target.exists():
        number += 1
        target = folder / f"{source.name}-{number}"
    part = folder / f".{target.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, target)
        except OSError:  # onto another disk: nobody sees half of it
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source, part)
            os.replace(part, target)
            shutil.rmtree(source, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _unmoved(error) from None
    return [target.name]


def move_results(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str], folder: Path) -> list[str]:
    """Moves the model, and what is called like it, into `folder`; returns the new names, the model's first.

    A checkpoint gets its base's `.yaml`, if there is one and the trainer made none: the WebUI tells by it what a model
    is. Raises UserError.
    """
    model = next((files.out / Path(name).name for name in names if name.endswith(".safetensors")), None)
    if model is None or not model.is_file():
        raise UserError("Training ended without a result. Its console file says why.")
    stem = model.name.removesuffix(".safetensors")
    before = load_record(files)
    own = before.result if before is not None else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = _free(folder, stem, own.removesuffix(".safetensors"))
        moved = []
        for ending in (".safetensors", *SIDECARS):
            source = files.out / f"{stem}{ending}"
            if source.is_file():
                _move(source, folder / f"{target}{ending}")
                moved.append(f"{target}{ending}")
        beside = Path(settings["base"]).with_suffix(".yaml")
        if settings["kind"] == "full" and f"{target}.yaml" not in moved and beside.is_file():
            shutil.copyfile(beside, folder / f"{target}.yaml")
            moved.append(f"{target}.yaml")
    except OSError as error:
        raise _unmoved(error) from None
    return moved


def _unmoved(error: OSError) -> UserError:
    reason = "the disk is full" if error.errno == 28 else "its folder cannot be written"
    return UserError(f"The result could not be moved to the WebUI's models: {reason}.")


def _free(folder: Path, stem: str, own: str) -> str:
    """The stem, or with a number behind it where another model is called so. own: one that may be written over."""
    number, free = 1, stem
    while free != own and any((folder / f"{free}{ending}").exists() for ending in (".safetensors", ".ckpt", ".pt")):
        number += 1
        free = f"{stem}-{number}"
    return free


def _move(source: Path, target: Path) -> None:
    """Renames; onto another disk it is copied under another name first, so that nobody sees half of it."""
    try:
        os.replace(source, target)
    except OSError:
        part = target.with_name(target.name + ".part")
        try:
            shutil.copyfile(source, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        source.unlink()
