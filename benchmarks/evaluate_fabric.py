"""What FABRIC does on `shapes`, measured by the parser: `python run.py evaluate fabric --out DIR [--quick]`.

Likes and dislikes are rendered images that share one attribute, mostly the colour, and nothing else. Prompts name the
other attributes and leave that one open, so its rate shows what the feedback does, and the named attributes show what
it costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studio import CFG, SAMPLER, STEPS, Pictures, Report, Studio, as_request, sheet, studio
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, VALUES, Scene, caption, random_scene, render

BATCH = 8
LIKES = (1, 2, 4, 8)
ROUNDS = 5
ONE: dict[str, Any] = {"reference_levels": "one", "strength": 0.5}
EVERY_STEP: dict[str, Any] = {"reference_levels": "every step"}
FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "every_step_": EVERY_STEP,
    "one_": ONE,
    "as_published_": {**EVERY_STEP, "weighting": "as published", "colour_correction": False},
}
NAMES = {"": "six levels", "every_step_": "every step", "one_": "one level", "as_published_": "as published"}
PLACED = ("kind", "place")
BATCHES: dict[str, dict[str, Any]] = {
    "off": {},
    "on": {"consistent_batch": True},
    "adain": {"consistent_batch": True, "adain": True},
}
OTHER_ATTRIBUTES = ("texture", "background")
OTHER_SAMPLERS = (
    ("Euler", 8), ("Euler", 40), ("Euler a", 20), ("DPM++ 2M Karras", 20), ("DDIM", 20), ("LCM", 20),
)  # fmt: skip
LIKES_OF_OTHERS = (2, 8)


@dataclass(frozen=True)
class Trial:
    """A value of an attribute, images that carry it, and prompts that leave the attribute open."""

    attribute: str
    value: str
    pictures: Pictures
    scenes: list[Scene]
    seed: int

    @property
    def named(self) -> tuple[str, ...]:
        """The attributes that the prompts name."""
        return tuple(name for name in ATTRIBUTES if name != self.attribute)

    def make(self, maker: Studio, request: dict[str, Any] | None, **fields: Any) -> Pictures:
        prompts = [caption(scene, self.named) for scene in self.scenes]
        return maker.make(prompts, self.seed, None if request is None else {"FABRIC": request}, **fields)


def trials(count: int, attribute: str = "colour") -> list[Trial]:
    """`count` trials, the attribute's values in turn; always the same ones."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(1000 + number)
        value = VALUES[attribute][number % len(VALUES[attribute])]
        shown = [render(random_scene(rng, **{attribute: value}), rng) for _ in range(max(LIKES))]
        scenes = [random_scene(rng) for _ in range(BATCH)]
        found.append(Trial(attribute, value, shown, scenes, 5000 + 100 * number))
    return found


Batches = list[tuple[Trial, Pictures]]


def run(maker: Studio, todo: Sequence[Trial], kind: str, number: int, form: dict[str, Any], **fields: Any) -> Batches:
    """The images of all trials with so many of their likes or dislikes."""
    batches = []
    for trial in todo:
        request = {kind: [as_request(p) for p in trial.pictures[:number]], **form} if number else None
        batches.append((trial, trial.make(maker, request, **fields)))
    return batches


def rate(batches: Batches) -> float:
    """Share of images that carry what their trial's likes or dislikes share."""
    return float(np.mean([parse(p).attributes[t.attribute] == t.value for t, pictures in batches for p in pictures]))


def accuracy(batches: Batches) -> float:
    """Share of named attributes found in the images."""
    hits = [
        hit
        for trial, pictures in batches
        for scene, picture in zip(trial.scenes, pictures)
        for hit in parse(picture).matches(scene, trial.named).values()
    ]
    return float(np.mean(hits))


def variety(batches: Sequence[Pictures]) -> float:
    """Mean difference between two images of a batch of one prompt, in values from 0 to 255."""
    pairs = [(one, two) for pictures in batches for one, two in combinations(pictures, 2)]
    return float(np.mean([np.abs(one.astype(np.float32) - two).mean() for one, two in pairs]))


def saturation(pictures: Sequence[np.ndarray]) -> float:
    """Mean saturation (HSV) of the most colourful tenth of each image's pixels."""
    values = []
    for picture in pictures:
        pixels = picture.reshape(-1, 3).astype(np.float32)
        top = pixels.max(1)
        chroma = (top - pixels.min(1)) / np.maximum(top, 1)
        values.append(float(np.sort(chroma)[-len(chroma) // 10 :].mean()))
    return float(np.mean(values))


def drift(maker: Studio, form: dict[str, Any], chains: int) -> tuple[list[float], tuple[float, float], list[Pictures]]:
    """The mean saturation before and after each of five rounds, in each of which images of the last one are liked; the
    variety within a batch before the first round and after it; and examples.

    `chains` chains, each with its own prompt. A round makes eight images with new seeds; the first two are liked in
    the next round.
    """
    rounds = np.zeros(ROUNDS + 1)
    examples: list[Pictures] = []
    before, after = [], []
    for number in range(chains):
        rng = np.random.default_rng(9000 + number)
        prompts = [caption(random_scene(rng), ("kind", "background"))] * BATCH
        pictures = maker.make(prompts, 70_000 + 100 * number)
        shown = [pictures[0]]
        rounds[0] += saturation(pictures)
        before.append(pictures)
        for step in range(1, ROUNDS + 1):
            asked = {"FABRIC": {"likes": [as_request(p) for p in pictures[:2]], **form}}
            pictures = maker.make(prompts, 70_000 + 100 * number + 10 * step, asked)
            shown.append(pictures[0])
            rounds[step] += saturation(pictures)
            if step == 1:
                after.append(pictures)
        if number < 6:
            examples.append(shown)
    return [float(mean) for mean in rounds / chains], (variety(before), variety(after)), examples


def evaluate(maker: Studio, count: int, out: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """All figures of the main part, with `count` images behind each, and those of the plot alone; writes example sheets
    into `out`."""
    todo = trials(-(-count // BATCH))
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}

    plain = run(maker, todo, "likes", 0, {})
    for form, extra in FORMS.items():
        started = time.monotonic()
        liked = {n: run(maker, todo, "likes", n, extra) for n in LIKES}
        disliked = run(maker, todo, "dislikes", 2, extra)
        metrics[f"{form}liked_rate_off"] = metrics[f"{form}disliked_rate_off"] = rate(plain)
        metrics[f"{form}liked_rate_on"] = rate(liked[2])
        metrics[f"{form}disliked_rate_on"] = rate(disliked)
        metrics[f"{form}prompt_accuracy_off"] = accuracy(plain)
        for n, batches in liked.items():
            metrics[f"{form}prompt_accuracy_on_{n}"] = accuracy(batches)
            details[f"{form}liked_rate_{n}"] = rate(batches)
        rounds, kept, chains = drift(maker, extra, len(todo))
        metrics[f"{form}saturation_drift"] = rounds[-1] / rounds[0] - 1
        metrics[f"{form}variety_off"], metrics[f"{form}variety_on"] = kept
        details[f"{form}saturation_by_round"] = rounds
        sheet(chains).save(out / f"{form}rounds.png")
        shown = [[*t.pictures[:2], *plain[i][1][:4], *liked[2][i][1][:4]] for i, t in enumerate(todo[:6])]
        sheet(shown).save(out / f"{form}likes.png")
        print(f"  {NAMES[form]}: {time.monotonic() - started:.0f} s", flush=True)
    drawn = [render(random_scene(rng), rng) for rng in map(np.random.default_rng, range(count))]
    details["saturation_rendered"] = saturation(drawn)
    return metrics, details


def consistency(maker: Studio, count: int, out: Path) -> dict[str, float]:
    """How often the images of a batch agree with its first in what the prompts leave open, and show what they name:
    without a consistent batch, with it, and with AdaIN as well; writes an example sheet into `out`."""
    metrics: dict[str, float] = {}
    rng, sheets = np.random.default_rng(4000), []
    batches = [[random_scene(rng) for _ in range(BATCH)] for _ in range(-(-count // BATCH))]
    for form, request in BATCHES.items():
        same: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
        for number, scenes in enumerate(batches):
            prompts = [caption(scene, PLACED) for scene in scenes]
            pictures = maker.make(prompts, 90_000 + 100 * number, {"FABRIC": request} if request else None)
            found = [parse(picture) for picture in pictures]
            for scene, parsed in zip(scenes[1:], found[1:]):
                for name, held in same.items():
                    wanted = scene.as_dict() if name in PLACED else found[0].attributes
                    held.append(parsed.attributes[name] == wanted[name])
            if number < 2:
                sheets.append(pictures)
        metrics |= {f"batch_{name}_{form}": float(np.mean(held)) for name, held in same.items()}
    sheet(sheets).save(out / "batches.png")
    return metrics


Row = tuple[str, list[tuple[float, float]]]


def elsewhere(maker: Studio, count: int) -> tuple[dict[str, float], list[Row]]:
    """Other attributes, and other samplers and numbers of steps: liked rate and accuracy without feedback and in every
    form but the published one, by name, and as rows of a table."""
    metrics: dict[str, float] = {}
    rows: list[Row] = []
    cases: list[tuple[str, list[Trial], tuple[int, ...], dict[str, Any]]] = []
    for attribute in OTHER_ATTRIBUTES:
        cases.append((attribute, trials(-(-count // BATCH), attribute), (2,), {}))
    for sampler, steps in OTHER_SAMPLERS:
        fields = {"sampler_name": sampler, "steps": steps}
        cases.append((f"{sampler} {steps}", trials(-(-count // BATCH)), LIKES_OF_OTHERS, fields))
    for name, todo, likes, fields in cases:
        started = time.monotonic()
        found = {"off": run(maker, todo, "likes", 0, {}, **fields)}
        for form in FORMS.keys() - {"as_published_"}:
            found |= {f"{form}{n}": run(maker, todo, "likes", n, FORMS[form], **fields) for n in likes}
        figures = {key: (rate(batches), accuracy(batches)) for key, batches in found.items()}
        key = name.lower().replace("++ ", "pp_").replace(" ", "_")
        for which, (liked, prompt) in figures.items():
            metrics[f"{key}_liked_rate_{which}"], metrics[f"{key}_prompt_accuracy_{which}"] = liked, prompt
        columns = ["off", *(f"{form}{n}" for n in likes for form in ("every_step_", "", "one_"))]
        rows.append((name, [figures[column] for column in columns]))
        print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
    return metrics, rows


def main(out: Path, quick: bool, images: int | None = None) -> int:
    """Write report.json, report.md, report.png and example sheets into `out`; 0 when done."""
    report, count = Report(out, "FABRIC on shapes"), images or (24 if quick else 200)
    with studio() as maker:
        metrics, details = evaluate(maker, count, out)
        others, cases = elsewhere(maker, count)
        together = consistency(maker, count, out)
    with report.plot(3, (12, 3.6)) as (left, middle, right):
        for form, label in NAMES.items():
            left.plot(LIKES, [metrics[f"{form}prompt_accuracy_on_{n}"] for n in LIKES], "o-", label=label)
            middle.plot(LIKES, [details[f"{form}liked_rate_{n}"] for n in LIKES], "o-", label=label)
            right.plot(range(ROUNDS + 1), details[f"{form}saturation_by_round"], "o-", label=label)
        left.axhline(metrics["prompt_accuracy_off"], color="grey", linestyle="--", label="off")
        middle.axhline(metrics["liked_rate_off"], color="grey", linestyle="--", label="off")
        right.axhline(details["saturation_rendered"], color="grey", linestyle="--", label="rendered")
        left.set(title="named attributes found", xlabel="likes")
        middle.set(title="images in the liked colour", xlabel="likes")
        right.set(title="saturation", xlabel="round")
        for axis in (left, middle, right):
            axis.set_ylim(0, 1.02)
            axis.legend()
    chains = -(-count // BATCH)
    margin = 1.96 * (0.25 / (chains * BATCH)) ** 0.5
    report.say(
        f"{chains * BATCH} images behind each figure, so that 95 % of the rates are within {margin:.2f}; {SAMPLER}, "
        f"{STEPS} steps, CFG {CFG:g}."
    )
    names = [name for name in metrics if not name.startswith(tuple(FORMS.keys() - {""}))]
    report.table(["figure", *NAMES.values()], [(n, *(metrics[f"{form}{n}"] for form in FORMS)) for n in names])
    report.table(
        ["liked rate with", *NAMES.values()],
        [(f"{n} likes", *(details[f"{form}liked_rate_{n}"] for form in FORMS)) for n in LIKES],
    )
    report.show("report.png", "curves")
    report.say(
        "Liked rate / named attributes with other attributes, samplers and numbers of steps: without feedback, and "
        "with 2 likes (samplers: also 8) at every step's level, at six, at one."
    )
    for likes in ((2,), LIKES_OF_OTHERS):
        head = ["", "off", *(f"{n}, {form}" for n in likes for form in ("every", "six", "one"))]
        shown = [(name, cells) for name, cells in cases if len(cells) == len(head) - 1]
        report.table(
            head, [(name, *(f"{liked:.2f} / {prompt:.2f}" for liked, prompt in cells)) for name, cells in shown]
        )
    report.say(
        "A consistent batch whose prompts name kind and place: how often the others show what is named, and agree with "
        "the first image in the rest. Batch off, on, and on with AdaIN:"
    )
    rows: list[list[str | float]] = [
        [name, *(together[f"batch_{name}_{form}"] for form in BATCHES)] for name in ATTRIBUTES
    ]
    report.table(["attribute", *BATCHES], rows)
    report.show("batches.png", "batches: two off, two on, two with AdaIN")
    report.say("Two likes, four images without and four with them, a trial a row:")
    report.show("likes.png", "likes")
    report.say("Five rounds, two images of each round liked in the next:")
    report.show("rounds.png", "rounds")
    return report.write(
        {
            **metrics,
            **others,
            **together,
            **{name: value for name, value in details.items() if isinstance(value, float)},
        },
        pictures_per_figure=chains * BATCH,
        chains_for_drift=chains,
        cfg_scale=CFG,
        fabric="defaults: strength 0.8, steps 0 to 0.8, negative weight 0.5; one level: strength 0.5",
    )
