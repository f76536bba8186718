"""How well `shapes` shows what a prompt names: `python run.py evaluate shapes --out DIR [--quick] [--images N]`.

Prompts name a random part of a random scene. A parser reads the attributes back from the images; the autoencoder's
share of the errors shows in images that only went through it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.harness.report import Report
from benchmarks.harness.studio import CFG, SAMPLER, STEPS, Pictures, Studio, sheet, studio
from standalone.shapes.figures import Figure, mean
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, VALUES, caption, random_scene, render

BATCH = 16


def accuracy(maker: Studio, count: int) -> tuple[dict[str, float], list[Pictures]]:
    """By attribute, the share of images in which it was found when the prompt named it; and example images."""
    rng = np.random.default_rng(42)
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    examples: list[Pictures] = []
    for start in range(0, count, BATCH):
        scenes = [random_scene(rng) for _ in range(BATCH)]
        named = []
        for _ in scenes:
            number = int(rng.integers(1, len(ATTRIBUTES) + 1))
            named.append(tuple(ATTRIBUTES[i] for i in sorted(rng.permutation(len(ATTRIBUTES))[:number])))
        pictures = maker.make([caption(s, n, rng) for s, n in zip(scenes, named)], 1_000_000 + start)
        for scene, names, picture in zip(scenes, named, pictures):
            for name, hit in parse(picture).matches(scene, names).items():
                hits[name].append(hit)
        examples.append(pictures[:8])
    return {name: mean(found) for name, found in hits.items()}, examples


def variety(maker: Studio, count: int) -> dict[str, float]:
    """By attribute, how evenly its values come up when the prompt leaves it open: entropy over its maximum, 1 is
    even."""
    rng = np.random.default_rng(43)
    seen: dict[str, list[str | None]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, count, BATCH):
        scenes = [random_scene(rng) for _ in range(BATCH)]
        for picture in maker.make([caption(s, ("kind",)) for s in scenes], 2_000_000 + start):
            for name, value in parse(picture).attributes.items():
                seen[name].append(value)
    result = {}
    for name in ATTRIBUTES:
        if name != "kind":
            shares = np.array([seen[name].count(value) for value in VALUES[name]]) / len(seen[name])
            shares = shares[shares > 0]
            result[name] = float(-(shares * np.log(shares)).sum() / np.log(len(VALUES[name])))
    return result


def autoencoder_accuracy(maker: Studio, count: int) -> dict[str, float]:
    """By attribute, the share of rendered images in which it is still found after the autoencoder."""
    rng = np.random.default_rng(44)
    scenes = [random_scene(rng) for _ in range(count)]
    rebuilt = maker.autoencoder([render(scene, rng) for scene in scenes])
    hits = [parse(picture).matches(scene, ATTRIBUTES) for scene, picture in zip(scenes, rebuilt)]
    return {name: mean(found[name] for found in hits) for name in ATTRIBUTES}


def measure(maker: Studio, count: int, out: Path) -> dict[str, float]:
    """All figures; writes samples.png into `out`."""
    found, examples = accuracy(maker, count)
    sheet(examples[:6]).save(out / "samples.png")
    # the attributes are of the same images: at worst their errors are the same, too
    margin = float(np.mean([figure.margin for figure in found.values() if isinstance(figure, Figure)]))
    metrics: dict[str, float] = {"accuracy": Figure(float(np.mean(list(found.values()))), margin)}
    metrics |= {f"accuracy_{name}": value for name, value in found.items()}
    metrics |= {f"variety_{name}": value for name, value in variety(maker, count).items()}
    metrics |= {f"autoencoder_{name}": value for name, value in autoencoder_accuracy(maker, count).items()}
    return metrics


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md and samples.png into `out`; 0 when done."""
    total = -(-images // BATCH) * BATCH
    report = Report(out, "shapes", pictures=total, cfg_scale=CFG)
    with studio() as maker:
        metrics = measure(maker, total, out)
    report.say(
        f"{total} images, {SAMPLER}, {STEPS} steps, CFG {CFG:g}. Prompts name a random part of the attributes, so an "
        f"attribute's own figure has about {total * 7 // 12} images behind it."
    )
    report.table(["figure", ""], metrics.items())
    report.show("samples.png", "samples")
    return report.write(metrics)
