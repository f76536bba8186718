"""What FABRIC does on `shapes`, measured by the parser: `python run.py evaluate fabric --out DIR [--quick]`.

Likes and dislikes are rendered images that share one colour and nothing else. Prompts name other attributes and
leave the colour open, so its rate shows what the feedback does, and the named attributes show what it costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studio import CFG, SAMPLER, STEPS, Pictures, Report, Studio, as_request, sheet, studio
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
    """A colour, images that carry it, and prompts that leave the colour open."""

    colour: str
    pictures: Pictures
    scenes: list[Scene]
    seed: int

    def make(self, maker: Studio, request: dict[str, Any] | None) -> Pictures:
        prompts = [caption(scene, NAMED) for scene in self.scenes]
        return maker.make(prompts, self.seed, None if request is None else {"FABRIC": request})


def trials(count: int) -> list[Trial]:
    """`count` trials, the colours in turn; always the same ones."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(1000 + number)
        colour = list(COLOURS)[number % len(COLOURS)]
        shown = [render(random_scene(rng, colour=colour), rng) for _ in range(max(LIKES))]
        found.append(Trial(colour, shown, [random_scene(rng) for _ in range(BATCH)], 5000 + 100 * number))
    return found


def colour_rate(batches: Sequence[tuple[Trial, Pictures]]) -> float:
    """Share of images that carry their trial's colour."""
    return float(np.mean([parse(p).attributes["colour"] == t.colour for t, pictures in batches for p in pictures]))


def accuracy(batches: Sequence[tuple[Trial, Pictures]]) -> float:
    """Share of named attributes found in the images."""
    hits = [
        hit
        for trial, pictures in batches
        for scene, picture in zip(trial.scenes, pictures)
        for hit in parse(picture).matches(scene, NAMED).values()
    ]
    return float(np.mean(hits))


def saturation(pictures: Sequence[np.ndarray]) -> float:
    """Mean saturation (HSV) of the most colourful tenth of each image's pixels."""
    values = []
    for picture in pictures:
        pixels = picture.reshape(-1, 3).astype(np.float32)
        top = pixels.max(1)
        chroma = (top - pixels.min(1)) / np.maximum(top, 1)
        values.append(float(np.sort(chroma)[-len(chroma) // 10 :].mean()))
    return float(np.mean(values))


def drift(maker: Studio, form: dict[str, Any], chains: int) -> tuple[list[float], list[Pictures]]:
    """The mean saturation before and after each of five rounds, in each of which images of the last one are liked; and
    examples.

    `chains` chains, each with its own prompt. A round makes eight images with new seeds; the first two are liked in
    the next round.
    """
    rounds = np.zeros(ROUNDS + 1)
    examples: list[Pictures] = []
    for number in range(chains):
        rng = np.random.default_rng(9000 + number)
        prompts = [caption(random_scene(rng), ("kind", "background"))] * BATCH
        pictures = maker.make(prompts, 70_000 + 100 * number)
        shown = [pictures[0]]
        rounds[0] += saturation(pictures)
        for step in range(1, ROUNDS + 1):
            asked = {"FABRIC": {"likes": [as_request(p) for p in pictures[:2]], **form}}
            pictures = maker.make(prompts, 70_000 + 100 * number + 10 * step, asked)
            shown.append(pictures[0])
            rounds[step] += saturation(pictures)
        if number < 6:
            examples.append(shown)
    return [float(mean) for mean in rounds / chains], examples


def evaluate(maker: Studio, count: int, out: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """All figures, with `count` images behind each, and those of the plot alone; writes example sheets into `out`."""
    todo = trials(-(-count // BATCH))
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}

    def run(name: str, kind: str, number: int, form: dict[str, Any]) -> list[tuple[Trial, Pictures]]:
        started = time.monotonic()
        batches = []
        for trial in todo:
            request = {kind: [as_request(p) for p in trial.pictures[:number]], **form} if number else None
            batches.append((trial, trial.make(maker, request)))
        print(f"  {name}: {len(todo) * BATCH} images in {time.monotonic() - started:.0f} s", flush=True)
        return batches

    plain = run("off", "likes", 0, {})
    for form, extra in FORMS.items():
        liked = {n: run(f"{form}{n} likes", "likes", n, extra) for n in LIKES}
        disliked = run(f"{form}2 dislikes", "dislikes", 2, extra)
        metrics[f"{form}liked_rate_off"] = metrics[f"{form}disliked_rate_off"] = colour_rate(plain)
        metrics[f"{form}liked_rate_on"] = colour_rate(liked[2])
        metrics[f"{form}disliked_rate_on"] = colour_rate(disliked)
        metrics[f"{form}prompt_accuracy_off"] = accuracy(plain)
        for n, batches in liked.items():
            metrics[f"{form}prompt_accuracy_on_{n}"] = accuracy(batches)
            details[f"{form}liked_rate_{n}"] = colour_rate(batches)
        rounds, chains = drift(maker, extra, len(todo))
        metrics[f"{form}saturation_drift"] = rounds[-1] / rounds[0] - 1
        details[f"{form}saturation_by_round"] = rounds
        sheet(chains).save(out / f"{form}rounds.png")
        shown = [[*t.pictures[:2], *plain[i][1][:4], *liked[2][i][1][:4]] for i, t in enumerate(todo[:6])]
        sheet(shown).save(out / f"{form}likes.png")
        print(f"  {form}drift: {metrics[f'{form}saturation_drift']:+.3f}", flush=True)
    return metrics, details


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md, report.png and example sheets into `out`; 0 when done."""
    report, count = Report(out, "FABRIC on shapes"), 24 if quick else 200
    with studio() as maker:
        metrics, details = evaluate(maker, count, out)
    with report.plot(3, (12, 3.6)) as (left, middle, right):
        for form, label in (("", "shared budget"), ("as_published_", "as published")):
            left.plot(LIKES, [metrics[f"{form}prompt_accuracy_on_{n}"] for n in LIKES], "o-", label=label)
            middle.plot(LIKES, [details[f"{form}liked_rate_{n}"] for n in LIKES], "o-", label=label)
            right.plot(range(ROUNDS + 1), details[f"{form}saturation_by_round"], "o-", label=label)
        left.axhline(metrics["prompt_accuracy_off"], color="grey", linestyle="--", label="off")
        middle.axhline(metrics["liked_rate_off"], color="grey", linestyle="--", label="off")
        left.set(title="named attributes found", xlabel="likes")
        middle.set(title="images in the liked colour", xlabel="likes")
        right.set(title="saturation", xlabel="round")
        for axis in (left, middle, right):
            axis.set_ylim(0, 1.02)
            axis.legend()
    chains = -(-count // BATCH)
    report.say(f"{chains * BATCH} images behind each figure; {SAMPLER}, {STEPS} steps, CFG {CFG:g}.")
    names = [name for name in metrics if not name.startswith("as_published_")]
    rows = [(name, metrics[name], metrics[f"as_published_{name}"]) for name in names]
    report.table(["figure", "ours", "as published"], rows)
    report.show("report.png", "curves")
    report.say("Two likes, four images without and four with them, a trial a row:")
    report.show("likes.png", "likes")
    report.say("Five rounds, two images of each round liked in the next:")
    report.show("rounds.png", "rounds")
    return report.write(
        metrics,
        pictures_per_figure=chains * BATCH,
        chains_for_drift=chains,
        cfg_scale=CFG,
        fabric="defaults: strength 0.8, steps 0 to 0.8, negative weight 0.5",
    )
