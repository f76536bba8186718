"""Dynamic thresholding on `shapes` at high CFG scales: `python run.py evaluate thresholding --out DIR [--quick]`.

The procedural world has no pixel at the ends of the range, so those are burnt. The parser reads the named attributes
back, and the colours are compared with those at the CFG scale that the model was trained for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluate_fabric import saturation
from benchmarks.studio import CFG, SAMPLER, STEPS, Pictures, Report, Studio, sheet, studio
from lib_methods.guiders.settings import CONTROLS, RESCALE
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, Scene, caption, random_scene, render

BATCH = 8
SCALES = (5, 7, 10, 15, 20, 30)
SHOWN = (5, 15, 30)
FORMS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "on": {"mimic_scale": CFG, "scaling_startpoint": "MEAN"},
    "zero": {"mimic_scale": CFG, "scaling_startpoint": "ZERO"},
    "rescale": {"method": RESCALE},
}
NAMES = {"off": "off", "on": f"mimic {CFG:g} MEAN", "zero": f"mimic {CFG:g} ZERO", "rescale": "rescale 0.7"}


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


def evaluate(maker: Studio, count: int) -> tuple[dict[str, float], dict[tuple[str, int], Pictures]]:
    """The figures by name, such as "burnt_20_on", and the images by form and CFG scale."""
    rng = np.random.default_rng(77)
    scenes = [random_scene(rng) for _ in range(-(-count // BATCH) * BATCH)]
    made: dict[tuple[str, int], Pictures] = {}
    metrics: dict[str, float] = {}
    for form, request in FORMS.items():
        for scale in SCALES:
            started = time.monotonic()
            asked = None if request is None else {CONTROLS.title: request}
            pictures: Pictures = []
            if request is not None and request.get("mimic_scale") == scale:
                pictures = made["off", scale]  # nothing is changed then; the tests say so
            for start in range(len(pictures), len(scenes), BATCH):
                prompts = [caption(scene, ATTRIBUTES) for scene in scenes[start : start + BATCH]]
                pictures += maker.make(prompts, 300_000 + start, asked, cfg_scale=float(scale))
            made[form, scale] = pictures
            figures = measure(scenes, pictures, made["off", SCALES[0]])
            metrics |= {f"{name}_{scale}_{form}": value for name, value in figures.items()}
            print(f"  CFG {scale}, {NAMES[form]}: {time.monotonic() - started:.0f} s", flush=True)
    drawn = [render(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    figures = measure(scenes, drawn, made["off", SCALES[0]])
    return {**metrics, **{f"{name}_rendered": value for name, value in figures.items()}}, made


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    report = Report(out, "Dynamic thresholding on shapes")
    with studio() as maker:
        metrics, made = evaluate(maker, 16 if quick else 200)
    columns = [("off", scale) for scale in SHOWN]
    columns += [(form, scale) for form in FORMS if form != "off" for scale in SHOWN[1:]]
    labels = [f"CFG {scale}, {NAMES[form]}" for form, scale in columns]
    sheet([[made[column][row] for column in columns] for row in range(6)], columns=labels).save(out / "examples.png")
    titles = {
        "burnt": "burnt pixels",
        "histogram": f"distance of the colours to CFG {SCALES[0]}",
        "accuracy": "named attributes found",
    }
    with report.plot(len(titles), (12, 3.6)) as axes:
        for axis, (name, title) in zip(axes, titles.items()):
            for form, label in NAMES.items():
                axis.plot(SCALES, [metrics[f"{name}_{scale}_{form}"] for scale in SCALES], "o-", label=label)
            axis.set(title=title, xlabel="CFG scale", ylim=(0, 1.02 if name == "accuracy" else None))
            axis.legend()
    count = len(made["off", SCALES[0]])
    report.say(f"{count} images behind each figure; {SAMPLER}, {STEPS} steps.")
    rows: list[list[str | float]] = []
    for figure in ("burnt", "histogram", "saturation", "accuracy"):
        for form, label in NAMES.items():
            rows.append([f"{figure}, {label}", *(metrics[f"{figure}_{scale}_{form}"] for scale in SCALES)])
    report.table(["figure", *(f"CFG {scale}" for scale in SCALES)], rows)
    report.show("report.png", "curves")
    report.show("examples.png", "examples")
    return report.write(
        metrics, pictures_per_figure=count, forms={NAMES[form]: request for form, request in FORMS.items()}
    )
