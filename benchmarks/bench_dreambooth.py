"""What a training step costs: `python run.py bench dreambooth --out DIR [--quick]`.

The pack's trainer against a plain loop written as diffusers' example has it (see `dreambooth_loops`), at SD1.5's size
with random weights, 512x512, a photo and a class picture each step (`--quick`: something tiny). The loops run in turn,
each in a process of its own so that its memory is its own, ours with the environment that the verb gives a training;
the figures are medians over the rounds, written after each.
`speedup`: the plain loop's seconds a step over ours; without a GPU `speedup_of_cpu_seconds` is the same of the
processes' own seconds, which other programs on the machine disturb less. `memory_ratio`: our peak over the plain
loop's; on a GPU torch's count, elsewhere the process's resident size. `counted_gib`: what the plan expected at full
size. VAE and text encoder run once for each picture in ours, before the training: `speedup_whole` has that in it, for
800 steps with 4 photos and 100 class pictures.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.dreambooth_loops import LOOPS, MEMORY
from benchmarks.full_size import environment
from benchmarks.report import write_json
from standalone import ROOT
from standalone.verbs.train_dreambooth import ENVIRONMENT

STEPS, PICTURES = 800, 104
_GIB = 2**30


def main(out: Path, quick: bool) -> int:
    """Write bench.json into `out`; 0 when done, 1 when a loop failed."""
    rounds = 3 if torch.cuda.is_available() else 1
    runs: dict[str, list[dict[str, Any]]] = {loop: [] for loop in LOOPS}
    for turn in range(rounds):
        for loop in LOOPS:
            found = run(loop, out, quick)
            if found is None:
                print(f"The loop '{loop}' failed, most likely for want of memory.", file=sys.stderr)
                return 1
            runs[loop].append(found)
            peak = "" if found["peak"] is None else f", {found['peak'] / _GIB:.2f} GiB"
            seconds = statistics.median(found["seconds"])
            print(f"  round {turn + 1}, {loop}: {seconds:.2f} s a step{peak}", flush=True)
            _write(out, runs, quick)
    print(f"Written to {out.name}: bench.json.")
    return 0


def run(loop: str, out: Path, quick: bool) -> dict[str, Any] | None:
    """What `dreambooth_loops` measured of a loop; None if it did not end well."""
    report = out / f"{loop}.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.dreambooth_loops", loop, str(report), *(["--quick"] if quick else [])]
    environment = {**({} if loop == "plain" else ENVIRONMENT), **os.environ}
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0 or not report.exists():
        return None
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    return found


def figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The metrics of the loops that were run; ratios only where both sides are there."""
    found: dict[str, float] = {}
    seconds: dict[str, float] = {}
    busy: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for loop, done in runs.items():
        if not done:
            continue
        seconds[loop] = statistics.median(second for one in done for second in one["seconds"])
        found[f"steps_per_second_{loop}"] = 1 / seconds[loop]
        if "cpu_seconds" in done[0]:
            busy[loop] = statistics.median(second for one in done for second in one["cpu_seconds"])
            found[f"cpu_seconds_a_step_{loop}"] = busy[loop]
        if done[0]["peak"] is not None:
            peaks[loop] = statistics.median(one["peak"] for one in done)
            found[f"peak_gib_{loop}"] = peaks[loop] / _GIB
        if "counted" in done[0]:
            found[f"counted_gib_{loop}"] = done[0]["counted"] / _GIB
    for loop, mark in (("full", ""), ("lora", "_lora")):
        if loop not in seconds or "plain" not in seconds:
            continue
        found[f"speedup{mark}"] = seconds["plain"] / seconds[loop]
        if loop in busy and "plain" in busy:
            found[f"speedup_of_cpu_seconds{mark}"] = busy["plain"] / busy[loop]
        before = PICTURES * statistics.median(one["seconds_a_picture"] for one in runs[loop])
        found[f"speedup_whole{mark}"] = STEPS * seconds["plain"] / (STEPS * seconds[loop] + before)
        if loop in peaks and "plain" in peaks:
            found[f"memory_ratio{mark}"] = peaks[loop] / peaks["plain"]
    return found


def _write(out: Path, runs: dict[str, list[dict[str, Any]]], quick: bool) -> None:
    plans = {loop: done[0]["plan"] for loop, done in runs.items() if done and "plan" in done[0]}
    metrics = {name: round(value, 4) for name, value in figures(runs).items()}
    settings = {
        **environment(torch.float32),
        "dtype": runs["plain"][0]["half"],
        "size": 64 if quick else 512,
        "tiny": quick,
        "planned_for_gib": MEMORY / _GIB,
        "plans": plans,
        "rounds": len(runs["plain"]),
    }
    write_json(out / "bench.json", metrics, settings)
