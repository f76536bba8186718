"""NAG on `shapes`: `python run.py evaluate nag --out DIR [--quick] [--images N]`.

Prompts name kind and place, the negative prompt names a colour or a background. How often does that still appear, and
how many of the named attributes are lost? Measured at CFG scale 1, where a negative prompt has no effect, and at 5.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import Report
from benchmarks.harness.studio import CFG, SAMPLER, STEPS, Pictures, Studio, sheet, studio
from standalone.shapes.figures import mean
from standalone.shapes.parser import parse
from standalone.shapes.world import VALUES, caption, random_scene

BATCH = 8
NAMED = ("kind", "place")
AVOIDED = ("colour", "background")
GENTLY = {"scale": 2.0, "alpha": 0.25}
FORMS: dict[str, tuple[float, bool, dict[str, float]]] = {
    "cfg_1": (1.0, False, {}),
    "cfg_1_nag_3": (1.0, False, {"scale": 3.0}),
    "cfg_1_nag_5": (1.0, False, {"scale": 5.0}),
    "cfg_5": (CFG, False, {}),
    "cfg_5_negative": (CFG, True, {}),
    "cfg_5_nag_2_gently": (CFG, False, GENTLY),
    "cfg_5_nag_3": (CFG, False, {"scale": 3.0}),
    "cfg_5_negative_and_nag_3": (CFG, True, {"scale": 3.0}),
}
"""CFG scale, whether the job has the negative prompt, and the settings of NAG, which always has it."""


def measure(maker: Studio, attribute: str, form: str, count: int) -> tuple[dict[str, float], Pictures]:
    """How often the avoided value is still there, and the share of named attributes found; and a batch of images."""
    scale, has_negative, nag = FORMS[form]
    there: list[bool] = []
    hits: list[list[bool]] = []
    examples: Pictures = []
    for number in range(-(-count // BATCH)):
        rng = np.random.default_rng(6000 + number)
        scenes = [random_scene(rng) for _ in range(BATCH)]
        avoided = random_scene(rng, **{attribute: VALUES[attribute][number % len(VALUES[attribute])]})
        negative = caption(avoided, (attribute,))
        negatives = [negative] * BATCH if has_negative else []
        request: dict[str, Any] | None = {"NAG": {**nag, "negative_prompt": negative}} if nag else None
        prompts = [caption(scene, NAMED) for scene in scenes]
        made = maker.make(prompts, 95_000 + 100 * number, request, negatives=negatives, cfg_scale=scale)
        parsed = [parse(picture) for picture in made]
        there += [found.attributes[attribute] == getattr(avoided, attribute) for found in parsed]
        hits += [list(found.matches(s, NAMED).values()) for s, found in zip(scenes, parsed)]
        examples = examples or made
    return {f"{attribute}_there_{form}": mean(there), f"{attribute}_accuracy_{form}": mean(hits)}, examples


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md and examples.png into `out`; 0 when done."""
    total = -(-images // BATCH) * BATCH
    report = Report(out, "NAG on shapes", pictures_per_figure=total)
    metrics: dict[str, float] = {}
    examples: dict[str, Pictures] = {}
    with studio() as maker:
        for attribute in AVOIDED:
            for form in FORMS:
                name = f"{attribute}: {form}"
                found, examples[name] = report.part(name, partial(measure, maker, attribute, form, images))
                metrics |= found
    sheet(list(examples.values()), list(examples)).save(out / "examples.png")
    report.say(f"{total} images behind each figure, {BATCH} for each negative prompt; {SAMPLER}, {STEPS} steps.")
    columns = [f"{attribute}_{figure}" for attribute in AVOIDED for figure in ("there", "accuracy")]
    report.table(
        ["", *columns],
        [[form.replace("_", " "), *(metrics[f"{column}_{form}"] for column in columns)] for form in FORMS],
    )
    report.show("examples.png", "examples")
    return report.write(metrics)
