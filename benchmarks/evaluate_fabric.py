"""What FABRIC does on `shapes`, measured by the parser: `python run.py evaluate fabric --out DIR [--quick]
[--images N]`.

Likes and dislikes are rendered images that share one attribute, mostly the colour, and nothing else. Prompts name the
other attributes and leave that one open, so its rate shows what the feedback does, and the named attributes show what
it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import Report, shown
from benchmarks.harness.studio import CFG, SAMPLER, STEPS, Pictures, Studio, as_request, sheet, studio
from standalone.shapes.figures import mean
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
        rendered = [render(random_scene(rng, **{attribute: value}), rng) for _ in range(max(LIKES))]
        scenes = [random_scene(rng) for _ in range(BATCH)]
        found.append(Trial(attribute, value, rendered, scenes, 5000 + 100 * number))
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
    return mean(parse(p).attributes[t.attribute] == t.value for t, pictures in batches for p in pictures)


def accuracy(batches: Batches) -> float:
    """Share of named attributes found in the images."""
    pairs = [(t, scene, picture) for t, pictures in batches for scene, picture in zip(t.scenes, pictures)]
    return mean(list(parse(p).matches(scene, t.named).values()) for t, scene, p in pairs)


def variety(batches: Sequence[Pictures]) -> float:
    """Mean difference between two images of a batch of one prompt, in values from 0 to 255."""
    return mean(
        [float(np.abs(a.astype(np.float32) - b).mean()) for a, b in combinations(batch, 2)] for batch in batches
    )


def saturation(pictures: Sequence[np.ndarray]) -> float:
    """Mean saturation (HSV) of the most colourful tenth of each image's pixels."""
    values = []
    for picture in pictures:
        pixels = picture.reshape(-1, 3).astype(np.float32)
        top = pixels.max(1)
        chroma = (top - pixels.min(1)) / np.maximum(top, 1)
        values.append(float(np.sort(chroma)[-len(chroma) // 10 :].mean()))
    return mean(values)


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
        firsts = [pictures[0]]
        rounds[0] += saturation(pictures)
        before.append(pictures)
        for step in range(1, ROUNDS + 1):
            asked = {"FABRIC": {"likes": [as_request(p) for p in pictures[:2]], **form}}
            pictures = maker.make(prompts, 70_000 + 100 * number + 10 * step, asked)
            firsts.append(pictures[0])
            rounds[step] += saturation(pictures)
            if step == 1:
                after.append(pictures)
        examples.append(firsts)
    return [float(value) for value in rounds / chains], (variety(before), variety(after)), examples


class Main:
    """The parts of the main comparison: colours, with `count` images behind each figure."""

    def __init__(self, maker: Studio, count: int) -> None:
        self.maker, self.todo = maker, trials(-(-count // BATCH))
        self.plain = cache(lambda: run(maker, self.todo, "likes", 0, {}))

    def form(self, form: str) -> tuple[dict[str, Any], Pictures]:
        """A form's figures, by names that begin with it, and a row of examples for each of six trials."""
        request, plain = FORMS[form], self.plain()
        liked = {n: run(self.maker, self.todo, "likes", n, request) for n in LIKES}
        found: dict[str, Any] = {
            "liked_rate_off": rate(plain),
            "liked_rate_on": rate(liked[2]),
            "disliked_rate_off": rate(plain),
            "disliked_rate_on": rate(run(self.maker, self.todo, "dislikes", 2, request)),
            "prompt_accuracy_off": accuracy(plain),
        }
        found |= {f"prompt_accuracy_on_{n}": accuracy(batches) for n, batches in liked.items()}
        found |= {f"liked_rate_{n}": rate(batches) for n, batches in liked.items()}
        examples = [
            picture
            for i, trial in enumerate(self.todo[:6])
            for picture in (*trial.pictures[:2], *plain[i][1][:4], *liked[2][i][1][:4])
        ]
        return {f"{form}{name}": value for name, value in found.items()}, examples

    def rounds(self, form: str) -> tuple[dict[str, Any], Pictures]:
        """How colours and variety change over rounds, and a row of examples for each of six chains."""
        rounds, kept, chains = drift(self.maker, FORMS[form], len(self.todo))
        found = {
            "saturation_drift": rounds[-1] / rounds[0] - 1,
            "variety_off": kept[0],
            "variety_on": kept[1],
            "saturation_by_round": rounds,
        }
        examples = [picture for chain in chains[:6] for picture in chain]
        return {f"{form}{name}": value for name, value in found.items()}, examples


def together(maker: Studio, form: str, count: int) -> tuple[dict[str, float], Pictures]:
    """How often the images of a batch agree with its first in what the prompts leave open, and show what they name: in
    a form of `BATCHES`; and two of the batches."""
    rng, request = np.random.default_rng(4000), BATCHES[form]
    same: dict[str, list[list[bool]]] = {name: [] for name in ATTRIBUTES}
    examples: Pictures = []
    for number in range(-(-count // BATCH)):
        scenes = [random_scene(rng) for _ in range(BATCH)]
        prompts = [caption(scene, PLACED) for scene in scenes]
        pictures = maker.make(prompts, 90_000 + 100 * number, {"FABRIC": request} if request else None)
        first, *others = (parse(picture).attributes for picture in pictures)
        for name, held in same.items():
            wanted = [scene.as_dict()[name] if name in PLACED else first[name] for scene in scenes[1:]]
            held.append([other[name] == value for other, value in zip(others, wanted)])
        if number < 2:
            examples += pictures
    return {f"batch_{name}_{form}": mean(held) for name, held in same.items()}, examples


def cases(count: int) -> dict[str, tuple[list[Trial], tuple[int, ...], dict[str, Any]]]:
    """Other attributes, samplers and numbers of steps: trials, numbers of likes and fields of the jobs, by name."""
    found: dict[str, tuple[list[Trial], tuple[int, ...], dict[str, Any]]] = {}
    for attribute in OTHER_ATTRIBUTES:
        found[attribute] = trials(-(-count // BATCH), attribute), (2,), {}
    for sampler, steps in OTHER_SAMPLERS:
        fields = {"sampler_name": sampler, "steps": steps}
        found[f"{sampler} {steps}"] = trials(-(-count // BATCH)), LIKES_OF_OTHERS, fields
    return found


def key_of(case: str) -> str:
    return case.lower().replace("++ ", "pp_").replace(" ", "_")


def elsewhere(
    maker: Studio, case: str, todo: list[Trial], likes: tuple[int, ...], fields: dict[str, Any]
) -> tuple[dict[str, float], Pictures]:
    """Liked rate and accuracy of a case without feedback and in every form but the published one."""
    found = {"off": run(maker, todo, "likes", 0, {}, **fields)}
    for form in FORMS.keys() - {"as_published_"}:
        found |= {f"{form}{n}": run(maker, todo, "likes", n, FORMS[form], **fields) for n in likes}
    figures = {f"{key_of(case)}_liked_rate_{which}": rate(batches) for which, batches in found.items()}
    figures |= {f"{key_of(case)}_prompt_accuracy_{which}": accuracy(batches) for which, batches in found.items()}
    return figures, []


def plot(report: Report, metrics: dict[str, Any]) -> None:
    """Named attributes and liked colour over the likes, and saturation over the rounds."""
    with report.plot(3, (12, 3.6)) as (left, middle, right):
        for form, label in NAMES.items():
            left.plot(LIKES, [metrics[f"{form}prompt_accuracy_on_{n}"] for n in LIKES], "o-", label=label)
            middle.plot(LIKES, [metrics[f"{form}liked_rate_{n}"] for n in LIKES], "o-", label=label)
            right.plot(range(ROUNDS + 1), metrics[f"{form}saturation_by_round"], "o-", label=label)
        left.axhline(metrics["prompt_accuracy_off"], color="grey", linestyle="--", label="off")
        middle.axhline(metrics["liked_rate_off"], color="grey", linestyle="--", label="off")
        right.axhline(metrics["saturation_rendered"], color="grey", linestyle="--", label="rendered")
        left.set(title="named attributes found", xlabel="likes")
        middle.set(title="images in the liked colour", xlabel="likes")
        right.set(title="saturation", xlabel="round")
        for axis in (left, middle, right):
            axis.set_ylim(0, 1.02)
            axis.legend()


def tables(report: Report, metrics: dict[str, Any], asked: dict[str, tuple[int, ...]]) -> None:
    """The report before its examples. asked: the numbers of likes of each case."""
    shared = ("liked_rate_", "disliked_rate_", "prompt_accuracy_", "saturation_drift", "variety_")
    names = [name for name in metrics if name.startswith(shared)]
    report.table(["figure", *NAMES.values()], [(n, *(metrics[f"{form}{n}"] for form in FORMS)) for n in names])
    report.show("report.png", "curves")
    report.say(
        "Liked rate / named attributes with other attributes, samplers and numbers of steps: without feedback, and "
        "with 2 likes (samplers: also 8) at every step's level, at six, at one."
    )
    for likes in ((2,), LIKES_OF_OTHERS):
        columns = ["off", *(f"{form}{n}" for n in likes for form in ("every_step_", "", "one_"))]
        head = ["", "off", *(f"{n}, {form}" for n in likes for form in ("every", "six", "one"))]
        rows = []
        for case in [case for case, numbers in asked.items() if numbers == likes]:
            pairs = [[f"{key_of(case)}_{name}_{c}" for name in ("liked_rate", "prompt_accuracy")] for c in columns]
            rows.append([case, *(f"{shown(metrics[liked])} / {shown(metrics[prompt])}" for liked, prompt in pairs)])
        report.table(head, rows)
    report.say(
        "A consistent batch whose prompts name kind and place: how often the others show what is named, and agree with "
        "the first image in the rest. Batch off, on, and on with AdaIN:"
    )
    report.table(
        ["attribute", *BATCHES], [[name, *(metrics[f"batch_{name}_{form}"] for form in BATCHES)] for name in ATTRIBUTES]
    )


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md, report.png and example sheets into `out`; 0 when done."""
    todo = cases(images)
    total = len(todo["texture"][0]) * BATCH
    report = Report(
        out,
        "FABRIC on shapes",
        pictures_per_figure=total,
        chains_for_drift=total // BATCH,
        cfg_scale=CFG,
        fabric="defaults: strength 0.8, steps 0 to 0.8, negative weight 0.5; one level: strength 0.5",
    )
    drawn = [render(random_scene(rng), rng) for rng in map(np.random.default_rng, range(images))]
    metrics: dict[str, Any] = {"saturation_rendered": saturation(drawn)}
    batches: list[Pictures] = []
    with studio() as maker:
        compared = Main(maker, images)
        for form, name in NAMES.items():
            for part, measure, each in (("likes", compared.form, 10), ("rounds", compared.rounds, ROUNDS + 1)):
                found, pictures = report.part(f"{name}, {part}", partial(measure, form))
                metrics |= found
                rows = [pictures[start : start + each] for start in range(0, len(pictures), each)]
                sheet(rows).save(out / f"{form}{part}.png")
        for case, (trials_, likes, fields) in todo.items():
            metrics |= report.part(case, partial(elsewhere, maker, case, trials_, likes, fields))[0]
        for form in BATCHES:
            found, pictures = report.part(f"consistent batch {form}", partial(together, maker, form, images))
            metrics |= found
            batches += [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    sheet(batches).save(out / "batches.png")
    plot(report, metrics)
    report.say(
        f"{total} images behind each figure, {total // BATCH} chains of rounds; {SAMPLER}, {STEPS} steps, CFG {CFG:g}. "
        f"The {BATCH} images of a trial share their likes, which the margins leave out."
    )
    tables(report, metrics, {case: likes for case, (_, likes, _) in todo.items()})
    report.show("batches.png", "batches: two off, two on, two with AdaIN")
    report.say("Two likes, four images without and four with them, a trial a row:")
    report.show("likes.png", "likes")
    report.say("Five rounds, two images of each round liked in the next:")
    report.show("rounds.png", "rounds")
    return report.write(metrics)
