"""The command cascade: candidates from a prompt, and larger images from candidates."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from lib_methods.cascade.settings import CONTROLS, LISTS, PATHS, CascadeRequest, free_name, from_json
from lib_methods.errors import Cancelled, UserError
from lib_methods.files import read_json

from .arguments import existing_file, full_path, image_file, text, writable_folder
from .serve import say
from .train_dreambooth import ENVIRONMENT, STOPPED, Interrupt, settings_file


def request_of(options: argparse.Namespace) -> CascadeRequest:
    """The job that the options stand for. With --resume what is not given is as it was.

    Raises UserError with a sentence.
    """
    controls = [control.name for control in CONTROLS.controls]
    given = {name: value for name, value in vars(options).items() if name in controls and value is not None}
    files: dict[str, Any] = {}
    for name in (*PATHS, *LISTS, "name"):
        value = getattr(options, name, None)
        if isinstance(value, list):
            files[name] = [str(full_path(path, f"--{_OPTIONS.get(name, name)}")) for path in value]
        elif value is not None:
            files[name] = str(full_path(value, f"--{name}")) if name in PATHS else value
    if options.settings is not None:
        return from_json(settings_file(options.settings, {**files, **given}))
    if options.resume:
        missing = [f"--{name}" for name in ("out", "name") if name not in files]
        if missing:
            raise UserError(f"To resume a run, give {' and '.join(missing)}.")
        kept = _kept(Path(files["out"]) / files["name"])
        return from_json({**kept, **files, "settings": {**kept.get("settings", {}), **given}})
    missing = [option for name, option in (("folders", "--stages"), ("out", "--out")) if name not in files]
    if not given.get("prompt", "").strip() and "resume_from" not in files:
        missing.insert(0, "a prompt")
    if missing:
        raise UserError(f"Something is missing: {', '.join(missing)}.")
    for name, value in given.items():
        if isinstance(value, str):
            text(value, f"--{name.replace('_', '-')}")
    if "name" not in files:
        files["name"] = free_name(given.get("prompt", ""), Path(files["out"]))
    return from_json({**files, "settings": given})


_OPTIONS = {"folders": "stages", "resume_from": "resume-from"}


def _kept(folder: Path) -> dict[str, Any]:
    """The job of an earlier run. Raises UserError."""
    try:
        kept = read_json(folder / "request.json")
    except (OSError, ValueError):
        kept = None
    if not isinstance(kept, dict) or not isinstance(kept.get("settings", {}), dict):
        raise UserError(f"There is no run called {folder.name} that can be resumed. Check --out and --name.")
    return kept


def _check(request: CascadeRequest) -> None:
    """UserError for files and folders that are not there, said before torch is imported."""
    for folder in request.folders:
        if not folder.is_dir():
            raise UserError(f"--stages: there is no folder {folder.name or folder}.")
    for path in request.resume_from:
        existing_file(path, "--resume-from")
    for option, image in (("--image", request.image), ("--mask", request.mask)):
        if image is not None:
            image_file(image, option)
    writable_folder(request.out, "--out")


def run(options: argparse.Namespace) -> int:
    """Generates, and says where the images are."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    interrupt = Interrupt()
    request = None
    try:
        with interrupt.listening():
            request = request_of(options)
            _check(request)
            from lib_methods.cascade.run import run_cascade

            result = run_cascade(
                request,
                resume=options.resume,
                plan_only=options.plan,
                say=say,
                cancelled=lambda: interrupt.asked,
            )
    except Cancelled as stopped:
        how = f" Resume with --resume --name {request.name}." if request is not None else ""
        print(f"{stopped}{how}", file=sys.stderr)
        return STOPPED
    for file in result.files:
        say(str(file))
    return 0
