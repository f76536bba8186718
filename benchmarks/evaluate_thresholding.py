"""Dynamic thresholding on `shapes` at high CFG scales: `python run.py evaluate thresholding --out DIR [--quick]`.

The procedural world has no pixel at the ends of the range, so those are burnt. The parser reads the named attributes
back, and the colours are compared with those at the CFG scale that the model is at home with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.evaluate_fabric import saturation
from benchmarks.report import write_report
from benchmarks.studio import CFG, SAMPLER, STEPS, Studio, sheet, studio
from lib_methods.thresholding.settings import CONTROLS, RESCALE
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
FIGURES = ("burnt", "histogram", "saturation", "accuracy")

Pictures = list[np.ndarray]


def burnt(pictures: Sequence[np.ndarray]) -> float:
    """Share of pixels with a channel at an end of its range."""
    pixels = np.stack(pictures)
    return float(((pixels <= 2) | (pixels >= 253)).any(axis=-1).mean())


def histogram(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Share of pixels in each of 8 x 8 x 8 boxes of colours."""
    boxes = (np.stack(pictures).reshape(-1, 3) // 32).astype(np.int64) @ np.array([64, 8, 1])
    return np.bincount(boxes, minlength=512) / len(boxes)


def distance(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Total variation of two colour histograms: 0 for the same colours, 1 for none in common."""
    return float(np.abs(histogram(one) - histogram(other)).sum() / 2)


def accuracy(scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> float:
    """Share of attributes found in the pictures; prompts name all of them."""
    hits = [hit for s, p in zip(scenes, pictures) for hit in parse(p).matches(s, ATTRIBUTES).values()]
    return float(np.mean(hits))


def measure(scenes: Sequence[Scene], pictures: Pictures, wanted: Pictures) -> dict[str, float]:
    """All figures of one setting; `wanted` are the pictures at the model's own CFG scale."""
    values = (burnt(pictures), distance(pictures, wanted), saturation(pictures), accuracy(scenes, pictures))
    return dict(zip(FIGURES, values))


def evaluate(maker: Studio, count: int) -> tuple[dict[str, float], dict[tuple[str, int], Pictures]]:
    """The figures by name, such as "burnt_20_on", and the pictures by form and CFG scale."""
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
                pictures += maker.make(prompts, 300_000 + start, scripts=asked, cfg_scale=float(scale))
            made[form, scale] = pictures
            figures = measure(scenes, pictures, made["off", SCALES[0]])
            metrics.update({f"{name}_{scale}_{form}": round(value, 4) for name, value in figures.items()})
            print(f"  CFG {scale}, {NAMES[form]}: {time.monotonic() - started:.0f} s", flush=True)
    drawn = [render(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    for name, value in measure(scenes, drawn, made["off", SCALES[0]]).items():
        metrics[f"{name}_rendered"] = round(value, 4)
    return metrics, made


def examples(made: dict[tuple[str, int], Pictures], rows: int = 6) -> Image.Image:
    """A prompt a row: without at every shown scale, then with, under a line that says which is which."""
    columns = [("off", scale) for scale in SHOWN]
    columns += [(form, scale) for form in FORMS if form != "off" for scale in SHOWN[1:]]
    body = sheet([[made[column][row] for column in columns] for row in range(rows)])
    header = 28
    canvas = Image.new("RGB", (body.width, body.height + header), "white")
    canvas.paste(body, (0, header))
    draw = ImageDraw.Draw(canvas)
    step = body.width / len(columns)
    for position, (form, scale) in enumerate(columns):
        draw.text((position * step + 6, 8), f"CFG {scale}, {NAMES[form]}", fill="black")
    return canvas


def _plot(metrics: dict[str, float], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "burnt": "burnt pixels",
        "histogram": f"distance of the colours to CFG {SCALES[0]}",
        "accuracy": "named attributes found",
    }
    figure, axes = plt.subplots(1, len(titles), figsize=(12, 3.6))
    for axis, (name, title) in zip(axes, titles.items()):
        for form in FORMS:
            axis.plot(SCALES, [metrics[f"{name}_{scale}_{form}"] for scale in SCALES], "o-", label=NAMES[form])
        axis.set(title=title, xlabel="CFG scale", ylim=(0, 1.02 if name == "accuracy" else None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(out / "report.png", dpi=110)
    plt.close(figure)


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    started = time.monotonic()
    with studio() as maker:
        metrics, made = evaluate(maker, 16 if quick else 200)
    count = len(made["off", SCALES[0]])
    settings = {
        "pictures_per_figure": count,
        "sampler": SAMPLER,
        "steps": STEPS,
        "size": 64,
        "forms": {NAMES[form]: request for form, request in FORMS.items()},
    }
    examples(made).save(out / "examples.png")
    _plot(metrics, out)
    lines = [
        "# Dynamic thresholding on shapes",
        "",
        f"{count} pictures behind each figure; {SAMPLER}, {STEPS} steps.",
        "",
        "| figure | " + " | ".join(f"CFG {scale}" for scale in SCALES) + " |",
        "|---|" + "---|" * len(SCALES),
    ]
    for name in FIGURES:
        for form in FORMS:
            values = " | ".join(f"{metrics[f'{name}_{scale}_{form}']:.3f}" for scale in SCALES)
            lines.append(f"| {name}, {NAMES[form]} | {values} |")
    write_report(out, metrics, settings, started, lines, ["![curves](report.png)", "![examples](examples.png)"])
    return 0
