"""Reads a run's log as it grows: what the page shows of it.

The log is written by another process and may end in half a line. Whatever in it is not understood is passed over.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib_methods.errors import Cancelled, UserError, out_of_memory, reason
from lib_methods.jobs.files import LOG

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
    """Writes a run's events. A log that cannot be written is said once, and stops nothing."""

    def __init__(self, folder: Path | None, say: Say, *, tensorboard: bool = True, quiet: bool = False) -> None:
        """folder: the run's own, which exists; None for no log. quiet: tell nothing, for all but one of several
        processes."""
        self.folder, self._say, self.quiet = folder, say, quiet
        self.last = ""  # the last event
        self._log_broken = False
        self._told = 0.0
        if folder is not None and not quiet:
            # a kill may have cut off a line: the next one stands alone
            with contextlib.suppress(OSError), (folder / LOG).open("r+b") as file:
                if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    file.write(b"\n")
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
                self._say(f"{LOG} cannot be written ({error.strerror or 'input or output error'}); training continues.")
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
        self.progress(f"Step {step} of {steps}, loss {losses['loss']:.4f}", step >= steps, left)

    def progress(self, text: str, is_over: bool, left: float | None) -> None:
        """How far something long is and the seconds that are left; said on the console now and then, and at its end."""
        if is_over or time.monotonic() - self._told >= SAY_EVERY:
            self._told = time.monotonic()
            self.say(text if left is None or is_over else f"{text}, about {duration(left)} left")

    @contextlib.contextmanager
    def ending(self, what: str, no_memory: str, kept: str) -> Iterator[Report]:
        """Ends a run in a sentence, which is in the log, too. Raises Cancelled, UserError, and what nobody expected.

        what: the run's name in a sentence. no_memory: what to do where it ran out. kept: what a failing disk leaves.
        """
        try:
            yield self
        except Cancelled:
            if self.last != "cancelled":
                self.event("cancelled")
            raise
        except UserError as error:
            self.event("error", text=str(error))
            raise
        except Exception as error:
            text = None
            if out_of_memory(error):
                text = f"Out of memory. {no_memory}"
            elif isinstance(error, OSError):
                text = f"The disk gave an error. {reason(error)} {kept}"
            self.event("error", text=text or f"{what} failed unexpectedly ({type(error).__name__}).")
            if text is None:
                raise  # a mistake of the program's, for the console to show whole
            raise UserError(text) from error
        finally:
            if self._board is not None:
                self._board.close()


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


MOST_WARNINGS = 50
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Sample:
    """Images generated at a step. files: below the run's folder, one per prompt."""

    step: int
    files: tuple[Path, ...]
    prompts: tuple[str, ...]


@dataclass
class Progress:
    """How far a run is. losses: (subject, prior) by step; prior None without one.

    outcome: "", "done", "cancelled" or "error". `fields` are those of the last event of that name.
    """

    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    losses: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcome: str = ""
    version: int = 0
    """Another number whenever something was read."""

    def copy(self) -> Progress:
        """One that does not change while the log grows."""
        own = {name: copy(getattr(self, name)) for name in ("fields", "losses", "samples", "warnings")}
        return replace(self, **own)

    def outcome_since(self, moment: float) -> str:
        """The outcome, if it was logged at this time or later: a log continues when its job is resumed."""
        return self.outcome if (number(self.of(self.outcome).get("time")) or 0.0) >= moment else ""

    def of(self, event: str) -> dict[str, Any]:
        """The last event of a name; empty when there was none."""
        return self.fields.get(event, {})

    @property
    def time(self) -> float:
        """When it last logged something, in seconds since 1970."""
        return max((number(event.get("time")) or 0.0 for event in self.fields.values()), default=0.0)

    @property
    def error(self) -> str:
        return str(self.of("error").get("text", "")) if self.outcome == "error" else ""

    @property
    def subject(self) -> str:
        """Identifier and class noun; "" before they are known."""
        return next(
            (str(self.of(event)["subject"]) for event in ("done", "start") if self.of(event).get("subject")), ""
        )


class LogReader:
    """Follows one log file. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._progress = Progress()

    def read(self) -> Progress:
        """Takes in what was added since the last time. A log that was restarted is read from its start."""
        try:
            with self.path.open("rb") as file:
                file.seek(0, 2)
                if file.tell() < self._offset:
                    self._offset, self._progress = 0, Progress(version=self._progress.version + 1)
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return self._progress
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self._progress

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            return
        name, progress = event["event"], self._progress
        progress.version += 1
        if name == "start":
            self._start(bool(event.get("resumed")))
        progress.fields[name] = event
        if name == "step":
            self._step(event)
        elif name == "sample":
            self._sample(event)
        elif name == "warning" and len(progress.warnings) < MOST_WARNINGS:
            text = str(event.get("text", ""))
            if text and text not in progress.warnings:
                progress.warnings.append(text)
        elif name in ("done", "cancelled", "error"):
            progress.outcome, progress.seconds_left = name, None

    def _start(self, resumed: bool) -> None:
        progress = self._progress
        progress.outcome, progress.seconds_left = "", None
        progress.warnings.clear()
        for event in ("phase", "error", "done", "cancelled"):
            progress.fields.pop(event, None)
        if not resumed:
            progress.step = progress.steps = 0
            progress.losses.clear()
            progress.samples.clear()
            progress.fields.clear()

    def _step(self, event: dict[str, Any]) -> None:
        step, progress = number(event.get("step")), self._progress
        if step is None:
            return
        progress.step = int(step)
        progress.steps = int(number(event.get("steps")) or progress.steps)
        progress.seconds_left = number(event.get("seconds_left"))
        subject = number(event.get("subject"))
        subject = number(event.get("loss")) if subject is None else subject
        if subject is not None:
            progress.losses[int(step)] = (subject, number(event.get("prior")))

    def _sample(self, event: dict[str, Any]) -> None:
        folder = self.path.parent.resolve()
        names, prompts = event.get("files"), event.get("prompts")
        files = [(folder / str(name)).resolve() for name in names] if isinstance(names, list) else []
        # a log is data: it names no other file of the machine
        inside = tuple(f for f in files if f.is_relative_to(folder) and f.suffix.lower() in PICTURES)
        texts = tuple(str(prompt) for prompt in prompts) if isinstance(prompts, list) else ()
        if inside:
            step = int(number(event.get("step")) or 0)
            samples = [sample for sample in self._progress.samples if sample.step != step]
            self._progress.samples = [*samples, Sample(step, inside, texts)]


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
