"""Pairs of the procedural world drawn without a model: the same objects at the same places, one attribute changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from standalone.shapes.world import SIZE_RANGES, UNIT, Scene, draw_layout, paint


def render_pair(before: Scene, after: Scene, seed: int, size: int = UNIT) -> np.ndarray:
    """Both pictures, uint8 of shape (2, size, size, 3).

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
