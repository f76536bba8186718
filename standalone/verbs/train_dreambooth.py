"""The command train-dreambooth: a LoRA or checkpoint from photos of a subject."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from lib_methods.errors import UserError, reason

from .arguments import existing_model, full_path, writable_folder
from .serve import say

STOPPED = 130
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # before CUDA starts: repeatable matrix products
    # before the first tensor: Linux gives the CPU's large ones in large pages; in small ones it was a tenth of a step
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Of a job's process, where it is not set."""

_NEEDED = {"photos": "--photos", "class_noun": "--class", "base": "--base", "out": "--out", "name": "--name"}


class Interrupt:
    """Ctrl-C: the first time the job ends after its step, the second time the program stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("Stopping after this step; press Ctrl-C again to stop at once.")

    @contextmanager
    def listening(self) -> Iterator[None]:
        names = [signal.SIGINT, signal.SIGTERM]
        before = {name: signal.signal(name, self) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def settings_file(file: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The values in the file of --settings, which stands alone. Raises UserError."""
    from lib_methods.files import read_json

    if given:
        raise UserError("--settings replaces the other options. Use one or the other.")
    try:
        values = read_json(file.expanduser())
    except OSError as error:
        raise UserError(f"{file.name} cannot be read. {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{file.name} is not valid JSON.") from error
    if not isinstance(values, dict):
        raise UserError(f"{file.name} must be one JSON object with the settings by name.")
    return values


def settings_of(options: argparse.Namespace) -> Any:
    """The TrainingSettings that the options stand for. With --resume what is not given is as it was.

    Raises UserError with a sentence.
    """
    from lib_methods.dreambooth.photos.companions import class_of_folders
    from lib_methods.dreambooth.settings import PATHS, TrainingSettings, from_json
    from lib_methods.errors import UserError

    known = {field.name for field in fields(TrainingSettings)}
    given = {name: value for name, value in vars(options).items() if name in known and value is not None}
    if options.settings is not None:
        values = settings_file(options.settings, given)
    else:
        values = {name: str(value) if name in PATHS else value for name, value in given.items()}
        if options.resume and "out" in values and "name" in values:
            from lib_methods.dreambooth.training.state import read_record

            folder = Path(values["out"]).expanduser() / values["name"]
            values = {**((read_record(folder) or {}).get("asked") or {}), **values}
        if values.get("photos") and not values.get("class_noun"):
            values["class_noun"] = class_of_folders(Path(values["photos"]).expanduser())
        missing = [option for name, option in _NEEDED.items() if not values.get(name)]
        if missing:
            raise UserError(f"Something is missing: {', '.join(missing)}.")
    for part in (values, *(part for part in values.get("concepts") or [] if isinstance(part, dict))):
        for name in PATHS:
            if part.get(name) and isinstance(part[name], str):
                part[name] = str(Path(part[name]).expanduser().absolute())
    return from_json(values)


def _check(options: argparse.Namespace) -> None:
    """UserError for files and folders that are not there, said before torch is imported."""
    if options.photos is not None and not full_path(options.photos, "--photos").is_dir():
        raise UserError(f"--photos: there is no folder {options.photos.name or options.photos}.")
    if options.base is not None:
        existing_model(options.base, "--base")
    if options.out is not None:
        writable_folder(options.out, "--out")


def run(options: argparse.Namespace) -> int:
    """Trains and says where the result is."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from lib_methods.errors import Cancelled

    interrupt = Interrupt()
    try:
        with interrupt.listening():
            settings = settings_of(options)
            _check(options)
            from lib_methods.dreambooth.output.scores import find_judge
            from lib_methods.dreambooth.run import run_training
            from standalone.dreambooth import load_training_model

            result = run_training(
                settings,
                load_training_model,
                resume=options.resume,
                plan_only=options.plan,
                say=say,
                cancelled=lambda: interrupt.asked,
                find_judge=find_judge,
            )
    except Cancelled as stopped:
        print(f"{stopped} Resume with --resume.", file=sys.stderr)
        return STOPPED
    if result.files:
        say(f'In prompts the subject is "{result.subject}".')
        say(str(result.files[0]))
    return 0
