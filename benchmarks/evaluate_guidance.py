"""Guidance on `shapes` at high CFG scales: `python run.py evaluate guidance --out DIR [--quick] [--images N]`.

The procedural world has no pixel at the ends of the range, so those are burnt. The parser reads the named attributes
back, and the colours are compared with those at the CFG scale that the model was trained for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluate_fabric import saturation
from benchmarks.studio import CFG, SAMPLER, STEPS, Pictures, Report, Studio, line_of, sheet, studio
from lib_methods.guiders.settings import APG, CONTROLS, MAHIRO, MIMIC, OFF, ZERO_STAR
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
}


def burnt(pictures: Sequence[np.ndarray]) -> float:
    """Share of pixels with a channel at an end of its range."""
    pixels = np.stack(pictures)
    return float(((pixels <= 2) | (pixels >= 253)).any(axis=-1).mean())


def histogram(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Share of pixels in each of 8 x 8 x 8 boxes of colours."""
    boxes = (np.stack(pictures).reshape(-1, 3) // 32).astype(np.int64) @ np.array([64, 8, 1])
    return np.bincount(boxes, minlength=512) / len(boxes)


def measure(scenes: Sequence[Scene], pictures: Pictures, wanted: Pictures) -> dict[str, float]:
    """All figures of one setting; `wanted` are the images at the model's usual CFG scale.

    histogram: total variation of both colour histograms, 0 for the same colours, 1 for none in common.
    accuracy: share of attributes found in the images; prompts name all of them.
    """
    hits = [hit for s, p in zip(scenes, pictures) for hit in parse(p).matches(s, ATTRIBUTES).values()]
    return {
        "burnt": burnt(pictures),
        "histogram": float(np.abs(histogram(pictures) - histogram(wanted)).sum() / 2),
        "saturation": saturation(pictures),
        "accuracy": float(np.mean(hits)),
    }


def evaluate(
    maker: Studio, count: int, scales: Sequence[int]
) -> tuple[dict[str, dict[str, float]], dict[tuple[str, int], Pictures]]:
    """The figures of every form at every CFG scale, such as "MaHiRo, CFG 20", and the images."""
    rng = np.random.default_rng(77)
    scenes = [random_scene(rng) for _ in range(count)]
    made: dict[tuple[str, int], Pictures] = {}
    figures: dict[str, dict[str, float]] = {}
    for scale in scales:
        for form, request in FORMS.items():
            settings = CONTROLS.settings_from(request)
            started = time.monotonic()
            pictures: Pictures = []
            if form != "off" and not settings.acts_at(scale):
                pictures = made["off", scale]  # nothing is changed then; the tests say so
            asked = {CONTROLS.title: request} if settings.acts_at(scale) else None
            for start in range(len(pictures), count, BATCH):
                prompts = [caption(scene, ATTRIBUTES) for scene in scenes[start : start + BATCH]]
                pictures = pictures + maker.make(prompts, 300_000 + start, asked, cfg_scale=float(scale))
            made[form, scale] = pictures
            found = figures[f"{form}, CFG {scale}"] = measure(scenes, pictures, made["off", scales[0]])
            print(f"  CFG {scale}, {form}: {line_of(found)}; {time.monotonic() - started:.0f} s", flush=True)
    drawn = [render(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    figures["rendered"] = measure(scenes, drawn, made["off", scales[0]])
    return figures, made


def main(out: Path, quick: bool, images: int | None = None) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    report, count = Report(out, "Guidance on shapes"), images or (16 if quick else 200)
    scales = (SCALES[0], HIGH) if quick else SCALES
    with studio() as maker:
        figures, made = evaluate(maker, count, scales)
    columns = [("off", scales[0]), *((form, HIGH) for form in FORMS)]
    labels = [f"CFG {scales[0]}", f"CFG {HIGH}", *list(FORMS)[1:]]
    rows = [[made[column][row] for column in columns] for row in range(min(6, count))]
    sheet(rows, columns=labels).save(out / "examples.png")
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
    margin = 1.96 * math.sqrt(0.9 * 0.1 / (count * len(ATTRIBUTES)))
    report.say(f"{count} images behind each figure, accuracy within {margin:.3f}; {SAMPLER}, {STEPS} steps.")
    for name, title in {**titles, "saturation": "saturation"}.items():
        report.say(f"{title.capitalize()}:")
        table: list[list[str | float]] = [
            [form, *(figures[f"{form}, CFG {scale}"][name] for scale in scales)] for form in FORMS
        ]
        report.table(["", *(f"CFG {scale}" for scale in scales)], table)
    report.say(
        f'The default is Skimmed CFG 5 with an interval outside of which the CFG scale is {CFG:g}; "to 1": outside of '
        "which there is no guidance."
    )
    report.show("report.png", "curves")
    report.show("examples.png", "examples")
    return report.write(figures, pictures_per_figure=count, forms=FORMS)
