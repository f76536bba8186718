"""How well `shapes` draws what a prompt names: `python run.py evaluate shapes --out DIR [--quick]`.

Prompts name a random part of a random scene. A parser reads the attributes back from the pictures; the autoencoder's
own share of the errors shows in pictures that only went through it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import write_report
from benchmarks.studio import CFG, SAMPLER, STEPS, Studio, sheet, studio
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, VALUES, caption, random_scene, render

BATCH = 16


def accuracy(maker: Studio, count: int) -> tuple[dict[str, float], list[list[np.ndarray]]]:
    """By attribute, the share of pictures in which it was found when the prompt named it; and example pictures."""
    rng = np.random.default_rng(42)
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    examples: list[list[np.ndarray]] = []
    for start in range(0, count, BATCH):
        scenes = [random_scene(rng) for _ in range(BATCH)]
        named = [_some(rng) for _ in scenes]
        pictures = maker.make([caption(s, n, rng) for s, n in zip(scenes, named)], 1_000_000 + start)
        for scene, names, picture in zip(scenes, named, pictures):
            for name, hit in parse(picture).matches(scene, names).items():
                hits[name].append(hit)
        examples.append(pictures[:8])
    return {name: float(np.mean(found)) for name, found in hits.items()}, examples


def _some(rng: np.random.Generator) -> tuple[str, ...]:
    count = int(rng.integers(1, len(ATTRIBUTES) + 1))
    return tuple(ATTRIBUTES[i] for i in sorted(rng.permutation(len(ATTRIBUTES))[:count]))


def variety(maker: Studio, count: int) -> dict[str, float]:
    """By attribute, how evenly its values come up when the prompt leaves it open: entropy over its maximum, 1 is
    even."""
    rng = np.random.default_rng(43)
    seen: dict[str, list[str | None]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, count, BATCH):
        scenes = [random_scene(rng) for _ in range(BATCH)]
        pictures = maker.make([caption(s, ("kind",)) for s in scenes], 2_000_000 + start)
        for picture in pictures:
            for name, value in parse(picture).attributes.items():
                seen[name].append(value)
    result = {}
    for name in ATTRIBUTES:
        if name != "kind":
            shares = np.array([seen[name].count(value) for value in VALUES[name]]) / len(seen[name])
            shares = shares[shares > 0]
            result[name] = float(-(shares * np.log(shares)).sum() / np.log(len(VALUES[name])))
    return result


def autoencoder_accuracy(count: int) -> dict[str, float]:
    """By attribute, the share of rendered pictures in which it is still found after the autoencoder."""
    from modules import shared

    rng = np.random.default_rng(44)
    scenes = [random_scene(rng) for _ in range(count)]
    pixels = torch.from_numpy(np.stack([render(s, rng) for s in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    model = shared.sd_model
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    with torch.no_grad():
        for part, group in zip(pixels.split(50), [scenes[i : i + 50] for i in range(0, count, 50)]):
            latents = model.get_first_stage_encoding(model.encode_first_stage(part.to(model.device)))
            decoded = model.decode_first_stage(latents).clamp(-1, 1).cpu()
            for scene, picture in zip(group, ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()):
                for name, hit in parse(picture).matches(scene, ATTRIBUTES).items():
                    hits[name].append(hit)
    return {name: float(np.mean(found)) for name, found in hits.items()}


def measure(maker: Studio, count: int, out: Path) -> dict[str, Any]:
    """All figures, rounded; writes samples.png into `out`."""
    found, examples = accuracy(maker, count)
    even = variety(maker, count)
    rebuilt = autoencoder_accuracy(count)
    sheet(examples[:6]).save(out / "samples.png")
    metrics = {"accuracy": float(np.mean(list(found.values())))}
    metrics |= {f"accuracy_{name}": value for name, value in found.items()}
    metrics |= {f"variety_{name}": value for name, value in even.items()}
    metrics |= {f"autoencoder_{name}": value for name, value in rebuilt.items()}
    return {name: round(value, 4) for name, value in metrics.items()}


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md and samples.png into `out`; 0 when done."""
    started = time.monotonic()
    count = 48 if quick else 480
    with studio() as maker:
        metrics = measure(maker, count, out)
    settings = {"pictures": count, "sampler": SAMPLER, "steps": STEPS, "cfg_scale": CFG, "size": 64}
    lines = [
        "# shapes",
        "",
        f"{count} pictures, {SAMPLER}, {STEPS} steps, CFG {CFG:g}.",
        "",
        "| figure | |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value:.3f} |" for name, value in metrics.items()]
    write_report(out, metrics, settings, started, lines, ["![samples](samples.png)"], ["samples.png"])
    return 0
