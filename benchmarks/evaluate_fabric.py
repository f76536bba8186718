"""What FABRIC does on `shapes`, measured by the parser: `python run.py evaluate fabric --out DIR [--quick]`.

Likes and dislikes are rendered pictures that share one colour and nothing else. Prompts name other attributes and
leave the colour open, so its rate shows what the feedback does, and the named attributes show what it costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import write_report
from benchmarks.studio import CFG, SAMPLER, STEPS, Studio, as_request, sheet, studio
from standalone.shapes.parser import parse
from standalone.shapes.world import COLOURS, Scene, caption, random_scene, render

NAMED = ("kind", "size", "texture", "place", "background")
BATCH = 8
LIKES = (1, 2, 4, 8)
ROUNDS = 5
FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "as_published_": {"weighting": "as published", "colour_correction": False},
}


@dataclass(frozen=True)
class Trial:
    """A colour, pictures that carry it, and prompts that leave the colour open."""

    colour: str
    feedback: tuple[str, ...]
    pictures: tuple[np.ndarray, ...]
    scenes: tuple[Scene, ...]
    prompts: tuple[str, ...]
    seed: int


def trials(count: int) -> list[Trial]:
    """`count` trials, the colours in turn; always the same ones."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(1000 + number)
        colour = list(COLOURS)[number % len(COLOURS)]
        shown = tuple(render(random_scene(rng, colour=colour), rng) for _ in range(max(LIKES)))
        scenes = tuple(random_scene(rng) for _ in range(BATCH))
        prompts = tuple(caption(scene, NAMED) for scene in scenes)
        found.append(Trial(colour, tuple(as_request(p) for p in shown), shown, scenes, prompts, 5000 + 100 * number))
    return found


def colour_rate(batches: Sequence[tuple[Trial, list[np.ndarray]]]) -> float:
    """Share of pictures that carry their trial's colour."""
    return float(np.mean([parse(p).attributes["colour"] == t.colour for t, pictures in batches for p in pictures]))


def accuracy(batches: Sequence[tuple[Trial, list[np.ndarray]]]) -> float:
    """Share of named attributes found in the pictures."""
    hits = [
        hit
        for trial, pictures in batches
        for scene, picture in zip(trial.scenes, pictures)
        for hit in parse(picture).matches(scene, NAMED).values()
    ]
    return float(np.mean(hits))


def saturation(pictures: Sequence[np.ndarray]) -> float:
    """Mean saturation (HSV) of the most colourful tenth of each picture's pixels."""
    values = []
    for picture in pictures:
        pixels = picture.reshape(-1, 3).astype(np.float32)
        top = pixels.max(1)
        chroma = (top - pixels.min(1)) / np.maximum(top, 1)
        values.append(float(np.sort(chroma)[-len(chroma) // 10 :].mean()))
    return float(np.mean(values))


def drift(maker: Studio, form: dict[str, Any], chains: int) -> tuple[float, list[float], list[list[np.ndarray]]]:
    """Relative change of the saturation after five rounds, in each of which pictures of the last one are liked.

    `chains` chains, each with its own prompt. A round makes eight pictures with new seeds; the first two are liked in
    the next round. Returns the change over the rounds, the mean saturation of each round, and examples.
    """
    rounds = np.zeros(ROUNDS + 1)
    examples: list[list[np.ndarray]] = []
    for number in range(chains):
        rng = np.random.default_rng(9000 + number)
        prompts = [caption(random_scene(rng), ("kind", "background"))] * BATCH
        pictures = maker.make(prompts, 70_000 + 100 * number)
        shown = [pictures[0]]
        rounds[0] += saturation(pictures)
        for step in range(1, ROUNDS + 1):
            asked = {"likes": [as_request(p) for p in pictures[:2]], **form}
            pictures = maker.make(prompts, 70_000 + 100 * number + 10 * step, asked)
            shown.append(pictures[0])
            rounds[step] += saturation(pictures)
        if number < 6:
            examples.append(shown)
    means = rounds / chains
    return float(means[-1] / means[0] - 1), [round(float(m), 4) for m in means], examples


def evaluate(maker: Studio, count: int, out: Path) -> dict[str, Any]:
    """All figures, with `count` pictures behind each; writes example sheets into `out`."""
    todo = trials(-(-count // BATCH))
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}

    def run(name: str, asked: Any) -> list[tuple[Trial, list[np.ndarray]]]:
        started = time.monotonic()
        batches = [(t, maker.make(t.prompts, t.seed, asked(t))) for t in todo]
        print(f"  {name}: {sum(len(p) for _, p in batches)} pictures in {time.monotonic() - started:.0f} s", flush=True)
        return batches

    def asking(kind: str, number: int, extra: dict[str, Any]) -> Any:
        return lambda trial: {kind: list(trial.feedback[:number]), **extra}

    plain = run("off", lambda trial: None)
    for form, extra in FORMS.items():
        liked = {n: run(f"{form}{n} likes", asking("likes", n, extra)) for n in LIKES}
        disliked = run(f"{form}2 dislikes", asking("dislikes", 2, extra))
        metrics[f"{form}liked_rate_off"] = metrics[f"{form}disliked_rate_off"] = colour_rate(plain)
        metrics[f"{form}liked_rate_on"] = colour_rate(liked[2])
        metrics[f"{form}disliked_rate_on"] = colour_rate(disliked)
        metrics[f"{form}prompt_accuracy_off"] = accuracy(plain)
        for n, batches in liked.items():
            metrics[f"{form}prompt_accuracy_on_{n}"] = accuracy(batches)
            details[f"{form}liked_rate_{n}"] = colour_rate(batches)
        change, rounds, chains = drift(maker, extra, len(todo))
        metrics[f"{form}saturation_drift"] = change
        details[f"{form}saturation_by_round"] = rounds
        sheet(chains).save(out / f"{form}rounds.png")
        shown = [[*t.pictures[:2], *plain[i][1][:4], *liked[2][i][1][:4]] for i, t in enumerate(todo[:6])]
        sheet(shown).save(out / f"{form}likes.png")
        print(f"  {form}drift: {change:+.3f}", flush=True)
    return {"metrics": {k: round(v, 4) for k, v in metrics.items()}, "details": details}


def _plot(report: dict[str, Any], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics, details = report["metrics"], report["details"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    for form, label in (("", "shared budget"), ("as_published_", "as published")):
        left.plot(LIKES, [metrics[f"{form}prompt_accuracy_on_{n}"] for n in LIKES], "o-", label=label)
        middle.plot(LIKES, [details[f"{form}liked_rate_{n}"] for n in LIKES], "o-", label=label)
        right.plot(range(ROUNDS + 1), details[f"{form}saturation_by_round"], "o-", label=label)
    left.axhline(metrics["prompt_accuracy_off"], color="grey", linestyle="--", label="off")
    middle.axhline(metrics["liked_rate_off"], color="grey", linestyle="--", label="off")
    for axis, title, below in (
        (left, "named attributes found", "likes"),
        (middle, "pictures in the liked colour", "likes"),
        (right, "saturation", "round"),
    ):
        axis.set(title=title, xlabel=below)
        axis.set_ylim(0, 1.02)
        axis.legend()
    figure.tight_layout()
    figure.savefig(out / "report.png", dpi=110)
    plt.close(figure)


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md, report.png and example sheets into `out`; 0 when done."""
    count = 24 if quick else 200
    started = time.monotonic()
    with studio() as maker:
        report = evaluate(maker, count, out)
    report["settings"] = {
        "pictures_per_figure": -(-count // BATCH) * BATCH,
        "chains_for_drift": -(-count // BATCH),
        "sampler": SAMPLER,
        "steps": STEPS,
        "cfg_scale": CFG,
        "size": 64,
        "fabric": "defaults: strength 0.8, steps 0 to 0.8, negative weight 0.5",
    }
    _plot(report, out)
    lines = [
        "# FABRIC on shapes",
        "",
        f"{report['settings']['pictures_per_figure']} pictures behind each figure; "
        f"{SAMPLER}, {STEPS} steps, CFG {CFG:g}.",
        "",
        "| figure | ours | as published |",
        "|---|---|---|",
    ]
    for name in (key for key in report["metrics"] if not key.startswith("as_published_")):
        ours, published = report["metrics"][name], report["metrics"][f"as_published_{name}"]
        lines.append(f"| {name} | {ours:.3f} | {published:.3f} |")
    after = [
        "![curves](report.png)",
        "Two likes, four pictures without and four with them, a trial a row:",
        "![likes](likes.png)",
        "Five rounds, two pictures of each round liked in the next:",
        "![rounds](rounds.png)",
    ]
    write_report(out, report["metrics"], report["settings"], started, lines, after, ["report.png"])
    return 0
