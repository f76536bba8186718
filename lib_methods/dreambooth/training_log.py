"""Reads a training's log as it grows: what the page shows of it.

The log is written by another process and may end in half a line. Whatever in it is not understood is passed over.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MOST_WARNINGS = 50
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Sample:
    """Pictures drawn at a step. files: below the training's folder, one per prompt."""

    step: int
    files: tuple[Path, ...]
    prompts: tuple[str, ...]


@dataclass
class Progress:
    """How far a training is. losses: (subject, prior) by step; prior None without one.

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
        return replace(
            self,
            fields=dict(self.fields),
            losses=dict(self.losses),
            samples=list(self.samples),
            warnings=list(self.warnings),
        )

    def outcome_since(self, moment: float) -> str:
        """The outcome, if it was told at this time or later: a log goes on when its training is resumed."""
        return self.outcome if (number(self.of(self.outcome).get("time")) or 0.0) >= moment else ""

    def of(self, event: str) -> dict[str, Any]:
        """The last event of a name; empty when there was none."""
        return self.fields.get(event, {})

    @property
    def time(self) -> float:
        """When it told something last, in seconds since 1970."""
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
        """Takes in what was added since the last time. A log that was begun anew is read from its start."""
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
