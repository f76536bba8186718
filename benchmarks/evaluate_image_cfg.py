"""InstructPix2Pix on `shapes-instruct`: `python run.py evaluate image_cfg --out DIR [--quick]
[--images N]`.

Images that the model has never seen are rendered from the procedural world and edited by an instruction that asks for
one other attribute ("make it red"), over a grid of both scales. The parser reads the attributes back, so both halves of
the trade-off are counted: is the asked attribute there, and are all others as they were. The curve is figure 8 of
Brooks et al. 2023 (arXiv 2211.09800), with attributes in the place of CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import Cell, Report
from benchmarks.harness.studio import (
    INSTRUCT_CHECKPOINT,
    SAMPLER,
    STEPS,
    Pictures,
    Studio,
    as_request,
    sheet,
    studio,
)
from lib_methods.image_cfg.settings import CONTROLS
from standalone.instruct.instructions import FIGURES, Edit, edits, measure
from standalone.instruct.triplets import CHANGED

BATCH = 8
TEXT_SCALES = (2.0, 3.0, 5.0)
IMAGE_SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)


def f1(figures: dict[str, float]) -> float:
    """Harmonic mean of instruction accuracy and preservation."""
    accuracy, kept = figures["instruction_accuracy"], figures["preservation"]
    return 2 * accuracy * kept / (accuracy + kept) if accuracy + kept else 0.0


def balance(figures: dict[str, float]) -> float:
    """The lower of instruction accuracy and preservation: what both of them reach."""
    return min(figures["instruction_accuracy"], figures["preservation"])


def monotonic(grid: dict[tuple[float, float], dict[str, float]]) -> float:
    """Share of the grid's steps to the next image scale, at the same text scale, at which the images come closer to
    their sources."""
    steps = [
        grid[text, higher]["similarity"] > grid[text, lower]["similarity"]
        for text in TEXT_SCALES
        for lower, higher in zip(IMAGE_SCALES, IMAGE_SCALES[1:])
    ]
    return float(np.mean(steps))


def make(maker: Studio, asked: Sequence[Edit], text: float, image: float) -> Pictures:
    """All edits at one setting, from noise."""
    pictures: Pictures = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        request = {"image": [as_request(edit.source) for edit in batch], "image_scale": image}
        prompts = [edit.instruction for edit in batch]
        pictures += maker.make(prompts, 500_000 + start, {CONTROLS.title: request}, cfg_scale=text)
    return pictures


def shown(asked: Sequence[Edit]) -> list[int]:
    """Two edits of each kind, for examples."""
    return [i for name in CHANGED for i in [i for i, edit in enumerate(asked) if edit.changed == name][:2]]


def at(maker: Studio, asked: Sequence[Edit], text: float, image: float) -> tuple[dict[str, Any], Pictures]:
    """The figures at one setting, those of each kind of edit, and examples."""
    pictures = make(maker, asked, text, image)
    by_attribute = {}
    for name in CHANGED:
        chosen = [i for i, edit in enumerate(asked) if edit.changed == name]
        if chosen:
            by_attribute[name] = measure([asked[i] for i in chosen], [pictures[i] for i in chosen])
    return {**measure(asked, pictures), "by_attribute": by_attribute}, [pictures[i] for i in shown(asked)]


def summary(asked: Sequence[Edit], grid: dict[tuple[float, float], dict[str, Any]]) -> dict[str, Any]:
    """The report's metrics."""
    best = max(grid, key=lambda setting: balance(grid[setting]))
    by_attribute = {setting: figures.pop("by_attribute") for setting, figures in grid.items()}
    return {
        "instruction_accuracy": grid[best]["instruction_accuracy"],
        "preservation": grid[best]["preservation"],
        "best_f1": max(f1(figures) for figures in grid.values()),
        "best_text_scale": best[0],
        "best_image_scale": best[1],
        "monotonic_s_I": monotonic(grid),
        "curve": [
            [image, *(grid[best[0], image][name] for name in ("direction", "similarity"))] for image in IMAGE_SCALES
        ],
        "grid": [{"text_scale": text, "image_scale": image, **figures} for (text, image), figures in grid.items()],
        "by_attribute": by_attribute[best],
        "unedited": measure(asked, [edit.source for edit in asked]),
        "rendered": measure(asked, [edit.wanted for edit in asked]),
    }


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    report = Report(
        out,
        "InstructPix2Pix on shapes-instruct",
        edits_per_figure=images,
        text_scales=TEXT_SCALES,
        image_scales=IMAGE_SCALES,
    )
    asked = edits(images)
    grid: dict[tuple[float, float], dict[str, Any]] = {}
    made: dict[tuple[float, float], Pictures] = {}
    with studio(INSTRUCT_CHECKPOINT) as maker:
        for text in TEXT_SCALES:
            for image in IMAGE_SCALES:
                name = f"text {text:g}, image {image:g}"
                grid[text, image], made[text, image] = report.part(name, partial(at, maker, asked, text, image))
    metrics = summary(asked, grid)
    sources = [asked[i].source for i in shown(asked)]
    rows = list(zip(sources, *(made[metrics["best_text_scale"], image] for image in IMAGE_SCALES)))
    columns = ["image", *(f"image scale {image:g}" for image in IMAGE_SCALES)]
    sheet(rows, [f'"{asked[i].instruction}"' for i in shown(asked)], columns).save(out / "examples.png")
    with report.plot(2, (11, 4)) as axes:
        for text in TEXT_SCALES:
            line = [entry for entry in metrics["grid"] if entry["text_scale"] == text]
            for axis, (across, up) in zip(
                axes, (("direction", "similarity"), ("instruction_accuracy", "preservation"))
            ):
                axis.plot([e[across] for e in line], [e[up] for e in line], "o-", label=f"text scale {text:g}")
                for entry in line:
                    axis.annotate(f"{entry['image_scale']:g}", (entry[across], entry[up]), fontsize=7)
        axes[0].set(xlabel="direction: change as asked", ylabel="similarity to the image")
        axes[1].set(xlabel="instruction accuracy", ylabel="preservation")
        for axis in axes:
            axis.legend(title="numbers: image scale")
    table: list[list[Cell]] = [
        [f"{e['text_scale']:g}", f"{e['image_scale']:g}", *(e[name] for name in FIGURES)] for e in metrics["grid"]
    ]
    table += [[name, "", *(metrics[name][figure] for figure in FIGURES)] for name in ("unedited", "rendered")]
    best = f"text scale {metrics['best_text_scale']:g}, image scale {metrics['best_image_scale']:g}"
    both = ("instruction_accuracy", "preservation")
    report.say(f"{len(asked)} edits behind each figure; {SAMPLER}, {STEPS} steps, from noise.")
    report.table(["text scale", "image scale", *FIGURES], table)
    report.say(f"Both are highest at {best}; the best F1 is {metrics['best_f1']:.3f}. By what is changed there:")
    changed = [(name, *(of[each] for each in both)) for name, of in metrics["by_attribute"].items()]
    report.table(["changed", *both], changed)
    report.show("report.png", "trade-off")
    report.show("examples.png", "examples")
    return report.write(metrics)
