"""Fills a folder with pairs: each triplet is generated several times and filtered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib_methods.jobs.log import SAY_EVERY, duration
from standalone.instruct import dataset
from standalone.instruct.filters import Filter
from standalone.instruct.prompt_to_prompt import Drawing, draw_pairs
from standalone.instruct.triplets import Triplet
from standalone.shapes.world import SIZE_RANGES, UNIT, Scene, draw_layout, paint


def render_pair(before: Scene, after: Scene, seed: int, size: int = UNIT) -> np.ndarray:
    """Both images, uint8 of shape (2, size, size, 3).

    Where the size of the objects changes, the large ones are laid out and the small ones stand at their centres, so
    that there is room for both.
    """
    rng = np.random.default_rng(seed)
    if before.size == after.size:
        layout = draw_layout(before, rng, size, size)
        return np.stack([paint(scene, layout, size, size) for scene in (before, after)])
    large = draw_layout(replace(before, size="large"), rng, size, size)
    low, high = SIZE_RANGES["small"]
    side = max(4, round(int(rng.integers(low, high + 1)) * size / UNIT))
    inset = (large.side - side) // 2
    small = replace(large, side=side, corners=tuple((x + inset, y + inset) for x, y in large.corners))
    layouts = {"large": large, "small": small}
    return np.stack([paint(scene, layouts[scene.size], size, size) for scene in (before, after)])


class Source:
    """Makes candidate pairs of a triplet. Each depends on the seeds alone, not on what was made before."""

    def draw(self, triplet: Triplet, seeds: Sequence[int], shares: Sequence[float]) -> np.ndarray:
        """uint8 (pairs, 2, size, size, 3)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ModelSource(Source):
    """Prompt-to-Prompt with a loaded checkpoint. `batch`: pairs at once, four rows of the UNet each."""

    model: Any
    drawing: Drawing
    batch: int = 8

    def draw(self, triplet: Triplet, seeds: Sequence[int], shares: Sequence[float]) -> np.ndarray:
        parts = [slice(start, start + self.batch) for start in range(0, len(seeds), self.batch)]
        return np.concatenate(
            [draw_pairs(self.model, triplet.before, triplet.after, seeds[p], shares[p], self.drawing) for p in parts]
        )


@dataclass(frozen=True)
class RenderedSource(Source):
    """The procedural world's own drawings."""

    size: int

    def draw(self, triplet: Triplet, seeds: Sequence[int], shares: Sequence[float]) -> np.ndarray:
        if triplet.scene_before is None or triplet.scene_after is None:
            raise ValueError("only triplets of the procedural world can be rendered")
        return np.stack([render_pair(triplet.scene_before, triplet.scene_after, seed, self.size) for seed in seeds])


@dataclass(frozen=True)
class PairCounts:
    """How many: pairs drawn for each triplet, and at most kept of them (the best by the filter's quality)."""

    tries: int
    keep: int
    seed: int
    shares: tuple[float, float]


def candidates(plan: PairCounts, number: int) -> tuple[list[int], list[float]]:
    """Seeds and attention shares of triplet `number`."""
    rng = np.random.default_rng((plan.seed, number, 1))
    seeds = [int(seed) for seed in rng.integers(0, 2**31, plan.tries)]
    return seeds, [float(share) for share in rng.uniform(*plan.shares, plan.tries)]


def make_triplet(
    folder: Path, number: int, triplet: Triplet, source: Source, judge: Filter, plan: PairCounts
) -> dict[str, Any]:
    """Draws, filters and writes one triplet's images; returns its line for the manifest."""
    seeds, shares = candidates(plan, number)
    pictures = source.draw(triplet, seeds, shares)
    verdicts = [judge(triplet, before, after) for before, after in pictures]
    good = [i for i, verdict in enumerate(verdicts) if verdict.keep]
    best = sorted(sorted(good, key=lambda i: -verdicts[i].quality)[: plan.keep])
    pairs = []
    for i in best:
        names = [f"{number:07d}-{i:03d}-{what}.png" for what in ("before", "after")]
        for name, picture in zip(names, pictures[i]):
            dataset.write_picture(folder / name, picture)
        pair: dict[str, Any] = {"before": names[0], "after": names[1], "seed": seeds[i]}
        if isinstance(source, ModelSource):
            pair["share"] = round(shares[i], 4)
        pairs.append({**pair, **verdicts[i].scores})
    return {"number": number, **triplet.as_dict(), "tried": len(seeds), "good": len(good), "pairs": pairs}


def make_pairs(
    folder: Path,
    triplet_at: Callable[[int], Triplet],
    count: int,
    source: Source,
    judge: Filter,
    plan: PairCounts,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Goes on after the triplets that are in the folder until there are `count`; returns the numbers of pairs kept and
    drawn, over all of them."""
    dataset.cut_half_line(folder)
    entries = dataset.read_manifest(folder)
    kept, drawn = sum(len(entry["pairs"]) for entry in entries), sum(int(entry.get("tried", 0)) for entry in entries)
    first, started, told = len(entries), time.monotonic(), time.monotonic()
    if first and first < count:
        say(f"Resuming after {first} of {count} triplets.")
    for number in range(first, count):
        entry = make_triplet(folder, number, triplet_at(number), source, judge, plan)
        dataset.append(folder, entry)
        kept, drawn = kept + len(entry["pairs"]), drawn + entry["tried"]
        now = time.monotonic()
        if now - told >= SAY_EVERY:
            left = (now - started) / (number + 1 - first) * (count - number - 1)
            say(f"{number + 1} of {count} triplets, {kept} of {drawn} pairs kept, about {duration(left)} left")
            told = now
    return kept, drawn
