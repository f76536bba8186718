"""NAG on `shapes`: `python run.py evaluate nag --out DIR [--quick] [--images N]`.

Prompts name kind and place, the negative prompt names a colour or a background. How often does that still appear, and
how many of the named attributes are lost? Measured at CFG scale 1, where a negative prompt has no effect, and at 5.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studio import CFG, SAMPLER, STEPS, Pictures, Report, Studio, sheet, studio
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


def evaluate(maker: Studio, count: int, out: Path) -> dict[str, float]:
    """The figures by name, such as "colour_there_cfg_1_nag_3"; writes examples into `out`."""
    metrics: dict[str, float] = {}
    shown: list[Pictures] = []
    for attribute in AVOIDED:
        for form, (scale, has_negative, nag) in FORMS.items():
            started, there, hits = time.monotonic(), [], []
            first: Pictures = []
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
                hits += [hit for s, found in zip(scenes, parsed) for hit in found.matches(s, NAMED).values()]
                first = first or made
            shown.append(first)
            metrics[f"{attribute}_there_{form}"] = float(np.mean(there))
            metrics[f"{attribute}_accuracy_{form}"] = float(np.mean(hits))
            print(f"  {attribute}, {form}: {time.monotonic() - started:.0f} s", flush=True)
    sheet(shown, [f"{attribute}: {form}" for attribute in AVOIDED for form in FORMS]).save(out / "examples.png")
    return metrics


def main(out: Path, quick: bool, images: int | None = None) -> int:
    """Write report.json, report.md and examples.png into `out`; 0 when done."""
    report, count = Report(out, "NAG on shapes"), images or (24 if quick else 200)
    with studio() as maker:
        metrics = evaluate(maker, count, out)
    total = -(-count // BATCH) * BATCH
    report.say(f"{total} images behind each figure; {SAMPLER}, {STEPS} steps.")
    columns = [f"{attribute}_{figure}" for attribute in AVOIDED for figure in ("there", "accuracy")]
    rows: list[list[str | float]] = [
        [form.replace("_", " "), *(metrics[f"{column}_{form}"] for column in columns)] for form in FORMS
    ]
    report.table(["", *columns], rows)
    report.show("examples.png", "examples")
    return report.write(metrics, pictures_per_figure=total)
