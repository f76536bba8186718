"""Guidance on `shapes` at high CFG scales: `python run.py evaluate guidance --out DIR [--quick] [--images N]`.

The procedural world has no pixel at the ends of the range, so those are burnt. The parser reads the named attributes
back, and the colours are compared with those at the CFG scale that the model was trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluate_fabric import saturation
from benchmarks.harness.report import Cell, Report
from benchmarks.harness.studio import CFG, SAMPLER, STEPS, Pictures, Studio, sheet, studio
from lib_methods.guiders.settings import APG, CONTROLS, MAHIRO, MIMIC, OFF, SEG, ZERO_STAR
from standalone.shapes.figures import mean
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, Scene, caption, random_scene, render

BATCH = 64
SCALES = (5, 10, 15, 20, 30)
HIGH = 20
"""The CFG scale of the example sheet and of the quick run."""
EVERYWHERE: dict[str, Any] = {"highest_sigma": 0, "lowest_sigma": 0}
FORMS: dict[str, dict[str, Any]] = {
    "off": {"method": OFF, **EVERYWHERE},
    "default": {},
    "Skimmed CFG 5, interval to 1": {"outside_scale": 1},
    "Skimmed CFG 5": EVERYWHERE,
    "Skimmed CFG 5, rescale 0.7": {"rescale": 0.7, **EVERYWHERE},
    "interval to 1": {"method": OFF, "outside_scale": 1},
    "CFG rescale 0.7": {"method": OFF, "rescale": 0.7, **EVERYWHERE},
    f"mimic scale {CFG:g}, ZERO": {"method": MIMIC, "mimic_scale": CFG, **EVERYWHERE},
    f"mimic scale {CFG:g}, MEAN": {"method": MIMIC, "mimic_scale": CFG, "scaling_startpoint": "MEAN", **EVERYWHERE},
    "APG": {"method": APG, **EVERYWHERE},
    "CFG-Zero*": {"method": ZERO_STAR, **EVERYWHERE},
    "MaHiRo": {"method": MAHIRO, **EVERYWHERE},
    "PAG 3": {"method": OFF, **EVERYWHERE, "perturbation_scale": 3},
    "SEG 3": {"method": OFF, **EVERYWHERE, "perturbation_scale": 3, "perturbation": SEG},
    "default, PAG 2": {"perturbation_scale": 2},
}


def burnt(pictures: Sequence[np.ndarray]) -> float:
    """Share of pixels with a channel at an end of its range."""
    return mean(float(((picture <= 2) | (picture >= 253)).any(axis=-1).mean()) for picture in pictures)


def histogram(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Share of pixels in each of 8 x 8 x 8 boxes of colours."""
    boxes = (np.stack(pictures).reshape(-1, 3) // 32).astype(np.int64) @ np.array([64, 8, 1])
    return np.bincount(boxes, minlength=512) / len(boxes)


def measure(scenes: Sequence[Scene], pictures: Pictures, wanted: Pictures) -> dict[str, float]:
    """All figures of one setting; `wanted` are the images at the model's usual CFG scale.

    histogram: total variation of both colour histograms, 0 for the same colours, 1 for none in common.
    accuracy: share of attributes found in the images; prompts name all of them.
    """
    return {
        "burnt": burnt(pictures),
        "histogram": float(np.abs(histogram(pictures) - histogram(wanted)).sum() / 2),
        "saturation": saturation(pictures),
        "accuracy": mean(list(parse(p).matches(s, ATTRIBUTES).values()) for s, p in zip(scenes, pictures)),
    }


def generate(maker: Studio, scenes: Sequence[Scene], form: str, scale: int) -> Pictures:
    """An image of each scene, all attributes named."""
    request, pictures = FORMS[form], Pictures()
    asked = {CONTROLS.title: request} if CONTROLS.settings_from(request).acts_at(scale) else None
    for start in range(0, len(scenes), BATCH):
        prompts = [caption(scene, ATTRIBUTES) for scene in scenes[start : start + BATCH]]
        pictures += maker.make(prompts, 300_000 + start, asked, cfg_scale=float(scale))
    return pictures


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    scales = (SCALES[0], HIGH) if quick else SCALES
    report = Report(out, "Guidance on shapes", pictures_per_figure=images, forms=FORMS, scales=scales)
    rng = np.random.default_rng(77)
    scenes = [random_scene(rng) for _ in range(images)]
    figures: dict[str, Any] = {}
    made: dict[tuple[str, int], Pictures] = {}
    with studio() as maker:
        wanted = cache(lambda: generate(maker, scenes, "off", scales[0]))

        def at(form: str, scale: int) -> tuple[dict[str, float], Pictures]:
            pictures = wanted() if (form, scale) == ("off", scales[0]) else generate(maker, scenes, form, scale)
            return measure(scenes, pictures, wanted()), pictures[:6]

        for scale in scales:
            for form, request in FORMS.items():
                name = f"{form}, CFG {scale}"
                if form != "off" and not CONTROLS.settings_from(request).acts_at(scale):
                    # nothing is changed then; the tests say so
                    figures[name], made[form, scale] = figures[f"off, CFG {scale}"], made["off", scale]
                else:
                    figures[name], made[form, scale] = report.part(name, partial(at, form, scale))
        drawn = [render(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
        figures["rendered"], _ = report.part("rendered", lambda: (measure(scenes, drawn, wanted()), []))
    columns = [("off", scales[0]), *((form, HIGH) for form in FORMS)]
    labels = [f"CFG {scales[0]}", f"CFG {HIGH}", *list(FORMS)[1:]]
    sheet(list(zip(*(made[column] for column in columns))), columns=labels).save(out / "examples.png")
    titles = {
        "burnt": "burnt pixels",
        "histogram": f"distance of the colours to CFG {scales[0]}",
        "accuracy": "named attributes found",
    }
    with report.plot(len(titles), (15, 5)) as axes:
        for axis, (name, title) in zip(axes, titles.items()):
            for number, form in enumerate(FORMS):
                values = [figures[f"{form}, CFG {scale}"][name] for scale in scales]
                axis.plot(scales, values, "o-" if number < 10 else "s--", label=form)
            axis.set(title=title, xlabel="CFG scale", ylim=(0, 1.02 if name == "accuracy" else None))
        axes[0].legend(fontsize="small")
    report.say(f"{images} images behind each figure; {SAMPLER}, {STEPS} steps.")
    for name, title in {**titles, "saturation": "saturation"}.items():
        report.say(f"{title.capitalize()}:")
        table: list[list[Cell]] = [
            [form, *(figures[f"{form}, CFG {scale}"][name] for scale in scales)] for form in FORMS
        ]
        report.table(["", *(f"CFG {scale}" for scale in scales)], table)
    report.say(
        f'The default is Skimmed CFG 5 with an interval outside of which the CFG scale is {CFG:g}; "to 1": outside of '
        "which there is no guidance."
    )
    report.show("report.png", "curves")
    report.show("examples.png", "examples")
    return report.write(figures)
