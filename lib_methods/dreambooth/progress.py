"""What a training tells: a log in JSON lines for pages and programs, sentences for the console, TensorBoard if there.

Each line of the log is one object with "event" and "time" (seconds since 1970). docs/dreambooth.md lists the events.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOG = "training.jsonl"
SAY_EVERY = 5.0  # seconds between two lines about steps on the console
Say = Callable[[str], None]


def duration(seconds: float) -> str:
    """A length of time as people say it: "40 s", "12 min", "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class Report:
    """Writes a training's events. A log that cannot be written is said once, and stops nothing."""

    def __init__(self, folder: Path | None, say: Say, *, tensorboard: bool = True, quiet: bool = False) -> None:
        """folder: the training's own, which exists; None for no log. quiet: tell nothing, for all but one of several
        processes."""
        self.folder, self._say, self.quiet = folder, say, quiet
        self.last = ""  # the last event
        self._log_broken = False
        self._told = 0.0
        if folder is not None and not quiet:
            _end_line(folder / LOG)
        self._board = None if quiet or folder is None or not tensorboard else _board(folder / "tensorboard")

    def event(self, event: str, /, **fields: Any) -> None:
        """Adds a line to the log. Numbers that are none (NaN, infinity) become null."""
        if self.quiet or self.folder is None:
            return
        self.last = event
        line = {"event": event, "time": round(time.time(), 3), **{key: _plain(value) for key, value in fields.items()}}
        try:
            text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
            with (self.folder / LOG).open("ab") as file:
                file.write(text.encode("utf-8"))
        except OSError as error:
            if not self._log_broken:
                self._say(f"{LOG} cannot be written ({error.strerror or 'input or output error'}); training goes on.")
            self._log_broken = True

    def say(self, text: str) -> None:
        """A sentence for the console only."""
        if not self.quiet:
            self._say(text)

    def warning(self, text: str) -> None:
        """Something that the user should know and that does not stop the training."""
        self.event("warning", text=text)
        self.say(f"Note: {text}")

    def phase(self, text: str, done: int, total: int) -> None:
        """How far a part before the training is; said on the console now and then, and at its end."""
        self.event("phase", text=text, done=done, total=total)
        if done >= total or time.monotonic() - self._told >= SAY_EVERY:
            self._told = time.monotonic()
            self.say(f"{text}: {done} of {total}")

    def step(self, step: int, steps: int, losses: dict[str, float], rate: float, pace: float | None) -> None:
        """One optimizer step. losses: "loss", "subject", "prior". pace: seconds a step."""
        left = None if pace is None else pace * (steps - step)
        self.event("step", step=step, steps=steps, **losses, rate=rate, seconds_left=left, seconds_per_step=pace)
        if self._board is not None:
            for name, value in {**losses, "rate": rate}.items():
                self._board.add_scalar(name, value, step)
        if step >= steps or time.monotonic() - self._told >= SAY_EVERY:
            self._told = time.monotonic()
            told = "" if left is None or step >= steps else f", about {duration(left)} left"
            self.say(f"Step {step} of {steps}, loss {losses['loss']:.4f}{told}")

    def close(self) -> None:
        """Writes what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()


def _end_line(log: Path) -> None:
    """Ends a line that a kill has cut off, so that the next one stands alone."""
    with contextlib.suppress(OSError), log.open("r+b") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            file.write(b"\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 8) if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _board(folder: Path) -> Any:
    """TensorBoard's writer, or None where it is not installed or does not start (its protobuf often does not fit)."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    except (ImportError, AttributeError, TypeError, OSError):
        return None


class Pace:
    """Seconds a step takes, as a running mean that forgets the first, slower ones."""

    def __init__(self, keep: float = 0.95) -> None:
        self.keep, self._mean, self._count = keep, 0.0, 0

    def add(self, seconds: float) -> None:
        self._count += 1
        weight = max(1 - self.keep, 1 / self._count) if self._count < 3 else 1 - self.keep
        self._mean = seconds if self._count <= 2 else self._mean + weight * (seconds - self._mean)

    @property
    def seconds(self) -> float | None:
        """None before the first step."""
        return self._mean if self._count else None
