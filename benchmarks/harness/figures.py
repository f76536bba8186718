"""All evaluations or all benchmarks, and the page of their figures: `python run.py evaluate all --out DIR`.

Each runs in its own process and writes into DIR/<method>; those whose report is finished are kept, so that you can stop
and start again. The page is `figures.md` beside this file with the figures filled in (`--page FILE`, else
DIR/figures.md): sections without a finished report stay as they are in that file. On a GPU everything runs in half
precision, and benchmarks of the UNet run at SDXL's size, too, into DIR/<method>-sdxl.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib_methods.files import write_whole
from standalone import ROOT

TEMPLATE = Path(__file__).with_name("figures.md")
SECTION = re.compile(r"<!-- (evaluate|bench) (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
KEY = re.compile(r"\{([^{}]+)\}")
FILES = {"evaluate": "report.json", "bench": "bench.json"}
COUNTS = ("pictures_per_figure", "edits_per_figure", "pictures")


def finished(kind: str, folder: Path) -> dict[str, Any] | None:
    """The report of a program that came to its end."""
    file = folder / FILES[kind]
    if not file.exists():
        return None
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return None if "unfinished" in report["settings"] else report


def run(kind: str, method: str, folder: Path, options: Sequence[str]) -> bool:
    """Run a program into `folder`, unless it has a finished report; whether it is there now."""
    if finished(kind, folder) is not None:
        print(f"{kind} {method}: kept, as {folder.name} has a finished report.", flush=True)
        return True
    print(f"{kind} {method} ...", flush=True)
    # a benchmark writes bench.json as it goes, so that it stays in another folder until it is done
    out = folder if kind == "evaluate" else folder / "unfinished"
    command = [sys.executable, str(ROOT / "run.py"), kind, method, "--out", str(out), *options]
    if subprocess.run(command, check=False).returncode != 0:
        return False
    report = json.loads((out / FILES[kind]).read_text(encoding="utf-8"))
    report["settings"]["options"] = " ".join(options)
    write_whole(folder / FILES[kind], (json.dumps(report, indent=2) + "\n").encode("utf-8"))
    if kind == "bench":
        shutil.rmtree(out)
    return True


def shown(value: float, margin: float | None) -> str:
    """A figure in a table."""
    digits = 1 if abs(value) >= 10 else 3 if abs(value) < 0.1 and value and (margin or 0) < 0.02 else 2
    return f"{value:.{digits}f}" + ("" if margin is None else f" ± {margin:.{digits}f}")


def found(report: Mapping[str, Any], key: str) -> str:
    """The figure at a key such as "default, CFG 20/burnt"; empty where the report has none."""
    value, margin = report["metrics"], report.get("margins")
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
        margin = margin.get(part) if isinstance(margin, Mapping) else None
    return "" if value is None else shown(float(value), margin)


def measured_with(kind: str, method: str, settings: Mapping[str, Any]) -> str:
    """A section's last line: the command, and what it ran with."""
    count = next((settings[name] for name in COUNTS if name in settings), None)
    options = settings.get("options", f"--images {count}" if count else "")
    parts = [f"`{f'python run.py {kind} {method} --out DIR {options}'.strip()}`"]
    parts += [f"{count} images behind each figure"] if count else []
    parts += [str(settings[name]).removeprefix("torch.") for name in ("device", "dtype") if settings.get(name)]
    return ", ".join(parts) + "."


def filled(text: str, report: Mapping[str, Any]) -> str:
    """A section with its figures. Rows that have none say so."""
    lines = []
    for line in text.splitlines():
        missing = not any(found(report, key) for key in KEY.findall(line))
        line = KEY.sub("not measured", line, count=1) if missing else line
        lines.append(KEY.sub(lambda key: found(report, key[1]), line))
    return "\n".join(lines)


def written(out: Path, old: str) -> str:
    """The page with the figures of all finished reports. old: what it was before."""
    before = {(kind, method): text for kind, method, text in SECTION.findall(old)}

    def section(match: re.Match[str]) -> str:
        kind, method, text = match.groups()
        parts = []
        for size in ("", "-sdxl"):
            report = finished(kind, out / f"{method}{size}")
            if report is not None:
                parts.append(f"{filled(text, report)}\n\n{measured_with(kind, method, report['settings'])}\n")
                text = text.split("\n", 2)[2]  # the second size needs no title
        missing = f"{text.splitlines()[0]}\n\nNot measured yet: `python run.py {kind} {method} --out DIR`.\n"
        whole = "\n".join(parts) or before.get((kind, method)) or missing
        return f"<!-- {kind} {method} -->\n{whole}<!-- end -->\n"

    return SECTION.sub(section, TEMPLATE.read_text(encoding="utf-8"))


def main(
    kind: str, methods: Sequence[str], out: Path, quick: bool, images: int | None = None, page: Path | None = None
) -> int:
    """Run all, write the page after each; 0 when every program came to its end. images: of evaluations."""
    file, failed = page or out / "figures.md", []
    options = (["--quick"] if quick else []) + (["--images", str(images)] if images else [])
    for method in methods:
        has_sizes = hasattr(importlib.import_module(f"benchmarks.{kind}_{method}"), "PIXELS")
        done = run(kind, method, out / method, options)
        if torch.cuda.is_available() and has_sizes:
            done &= run(kind, method, out / f"{method}-sdxl", [*options, "--size", "sdxl"])
        if not done:
            failed.append(method)
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        write_whole(file, written(out, old).encode("utf-8"))
    print(f"Written to {file.name}." + (f" Failed: {', '.join(failed)}." if failed else ""))
    return 1 if failed else 0
