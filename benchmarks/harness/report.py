"""What a program of this folder writes: report.json and report.md with tables, plots and example images."""

from __future__ import annotations

import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness.studio import SAMPLER, STEPS, Pictures
from lib_methods.files import as_file_name, write_whole
from standalone.shapes.figures import Figure

Cell = str | float | None


def rounded(value: Any) -> Any:
    """Figures, in whatever lists and mappings they are, to four digits."""
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return round(float(value), 4) if isinstance(value, float) else value


def margins(value: Any) -> Any:
    """The margins of figures, in the same lists and mappings; None for whatever has none."""
    if isinstance(value, Mapping):
        return {name: found for name, each in value.items() if (found := margins(each))} or None
    if isinstance(value, list | tuple):
        found = [margins(each) for each in value]
        return found if any(found) else None
    return round(value.margin, 4) if isinstance(value, Figure) else None


def figures(value: Any, margin: Any) -> Any:
    """Figures with their margins again, as `rounded` and `margins` have taken them apart."""
    if isinstance(value, Mapping):
        return {name: figures(each, (margin or {}).get(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [figures(each, margin[i] if margin else None) for i, each in enumerate(value)]
    return value if margin is None else Figure(value, margin)


def shown(value: Cell) -> str:
    """A cell of a table: numbers with three digits and their margin, if they have one."""
    if isinstance(value, float) and not isinstance(value, Figure):
        return f"{value:.3f}"
    return "" if value is None else str(value)


def line_of(found: Mapping[str, float]) -> str:
    """Figures in one line of the console."""
    return ", ".join(f"{name} {shown(value)}" for name, value in found.items())


def write_json(path: Path, metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """The figures, their margins, and what they were measured with. The file is whole at any moment."""
    report = {"metrics": rounded(metrics), "margins": margins(metrics), "settings": settings}
    text = json.dumps({name: part for name, part in report.items() if part is not None}, indent=2)
    write_whole(path, (text + "\n").encode("utf-8"))


class Report:
    """report.md, which grows by paragraphs, and report.json, which grows by parts.

    A run that was interrupted continues: its parts are taken over if the settings are the same.
    """

    def __init__(self, out: Path, title: str, **settings: Any) -> None:
        self.out, self.paragraphs, self.parts = out, [f"# {title}"], dict[str, Any]()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.settings = {"sampler": SAMPLER, "steps": STEPS, "size": 64, "device": device, **settings}
        self._file, self._examples = out / "report.json", out / "parts"
        self._started = time.monotonic()
        if self._file.exists():
            self._resume(json.loads(self._file.read_text(encoding="utf-8")))

    def _resume(self, before: dict[str, Any]) -> None:
        """Take over the parts of a report that was not finished and has these settings."""
        state = before["settings"].pop("unfinished", None)
        if state is not None and before["settings"] == json.loads(json.dumps(self.settings)):
            self.parts = figures(before["metrics"], before.get("margins"))
            self._started -= state["seconds"]
            print(f"Resuming: {len(self.parts)} parts are done. To start over, delete {self._file.name}.", flush=True)

    def part(
        self, name: str, measure: Callable[[], tuple[Mapping[str, Any], Pictures]]
    ) -> tuple[dict[str, Any], Pictures]:
        """Figures and example images (of one size) of a part: measured and written now, or by the interrupted run."""
        examples = self._examples / f"{as_file_name(name)}.png"
        if name not in self.parts:
            started = time.monotonic()
            found, pictures = measure()
            if pictures:
                self._examples.mkdir(exist_ok=True)
                Image.fromarray(np.concatenate(pictures, axis=1)).save(examples)
            self.parts[name] = dict(found)
            state = {"seconds": round(time.monotonic() - self._started)}
            write_json(self._file, self.parts, {**self.settings, "unfinished": state})
            told = line_of({key: value for key, value in found.items() if isinstance(value, float)})
            print(f"  {name}: {told} ({time.monotonic() - started:.0f} s)", flush=True)
            return self.parts[name], pictures
        if not examples.exists():
            return self.parts[name], []
        strip = np.asarray(Image.open(examples))
        return self.parts[name], np.split(strip, strip.shape[1] // strip.shape[0], axis=1)

    def say(self, text: str) -> None:
        self.paragraphs.append(text)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
        """A table, numbers with three digits and their margins; None leaves a cell empty. It is printed, too."""
        lines = [f"| {' | '.join(head)} |".replace("_", " "), "|---" * len(head) + "|"]
        for row in rows:
            lines.append(f"| {' | '.join(map(shown, row))} |")
        self.say("\n".join(lines))
        print(self.paragraphs[-1])

    def show(self, file: str, alt: str) -> None:
        """An image beside the report."""
        self.say(f"![{alt}]({file})")

    @contextmanager
    def plot(self, columns: int, size: tuple[float, float]) -> Iterator[Any]:
        """The axes of report.png, side by side; saved when the block ends."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False)
        yield axes[0]
        figure.tight_layout()
        figure.savefig(self.out / "report.png", dpi=110)
        plt.close(figure)

    def write(self, metrics: Mapping[str, Any], **settings: Any) -> int:
        """Write both files; 0, as a program's exit status. settings: further ones, known only now."""
        measured = {"seconds": round(time.monotonic() - self._started), "python": platform.python_version()}
        write_json(self._file, metrics, {**self.settings, **settings, **measured})
        self.say("± is the margin of error: the true value is within it with 95 % confidence.")
        (self.out / "report.md").write_text("\n\n".join(self.paragraphs) + "\n", encoding="utf-8")
        shutil.rmtree(self._examples, ignore_errors=True)
        images = [found[1] for text in self.paragraphs if (found := re.fullmatch(r"!\[.*\]\((.*)\)", text))]
        print(f"Written to {self.out.name}: {', '.join(['report.json', 'report.md', *images])}.")
        return 0
