"""What surrounds a training: its folder, taken by one process, the ways to stop it, errors that end in a sentence."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, Timeout

from lib_methods.dreambooth.errors import DreamBoothError, TrainingStopped
from lib_methods.dreambooth.output.result import ENDING
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.record import ANOTHER
from lib_methods.dreambooth.training.state import RECORD
from lib_methods.errors import UserError, out_of_memory
from lib_methods.jobs.log import Report

CANCEL = "cancel"  # a file of this name in the training's folder stops it
LOCK = "lock"


def take_folder(settings: TrainingSettings, folder: Path, lock: BaseFileLock, resume: bool) -> None:
    """Makes the training's folder and takes it. DreamBoothError when it cannot be had."""
    result = settings.out / f"{settings.name}{ENDING}"
    if not resume and (folder / RECORD).exists():
        raise DreamBoothError(f"A run called {settings.name} already exists. Resume it with --resume, or {ANOTHER}.")
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


def stopper(folder: Path, cancelled: Callable[[], bool]) -> Callable[[], bool]:
    """Whether to stop: asked for by the caller, or by a file in the training's folder."""
    return lambda: cancelled() or (folder / CANCEL).exists()


@contextlib.contextmanager
def told(report: Report) -> Iterator[None]:
    """Ends in a sentence, which is in the log, too."""
    try:
        yield
    except TrainingStopped:
        if report.last != "cancelled":
            report.event("cancelled")
        raise
    except UserError as error:
        report.event("error", text=str(error))
        raise
    except Exception as error:
        text = _sentence(error)
        report.event("error", text=text or f"Training failed unexpectedly ({type(error).__name__}).")
        if text is None:
            raise  # a mistake of the program's, for the console to show whole
        raise DreamBoothError(text) from error
    finally:
        report.close()


def _sentence(error: Exception) -> str | None:
    """The error in the user's words; None where it is not one that a machine may well have."""
    if out_of_memory(error):
        return "Out of memory. Set a limit, for example --memory 8GB."
    if isinstance(error, OSError):
        return f"The disk gave an error ({error.strerror or 'it may be full'}). What was saved before is still there."
    return None


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within the block the same input gives the same numbers, on a GPU too, where its kernels can."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    options: Any = getattr(torch.utils, "deterministic", None)  # not in torch 2.1
    filled = getattr(options, "fill_uninitialized_memory", False)
    if options is not None:
        options.fill_uninitialized_memory = False  # costs time, and no kernel here reads what it did not write
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if options is not None:
            options.fill_uninitialized_memory = filled
