"""How many operations a pass through a UNet takes, counted from the names and shapes of its weights.

Names are LDM's, as in single files, or diffusers', as in folders; both without what stands in front of the UNet's. A
weight of a layer that works on every cell of a level costs its numbers once a cell; attention costs as its formula
says. Norms and activations are not counted: what they take is part of the efficiency in `speed`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

TOKENS = 77  # of the text
_LDM_DOWN = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight")
_LDM_UP = re.compile(r"output_blocks\.(\d+)\.\d+\.conv\.weight")
_LDM_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.")
_DIFFUSERS_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.")
_ONCE = ("time_embed", "label_emb", "time_embedding", "add_embedding", "class_embedding")  # for a picture, not a cell
_ONCE_INSIDE = (".emb_layers.", ".time_emb_proj.")
_ATTENTION = (".attn1.to_q.weight", ".attn2.to_q.weight")
_OF_TEXT = (".attn2.to_k.weight", ".attn2.to_v.weight")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """What a pass takes. dense: multiply-adds for each cell of a level; level 0 has the latent's cells, each next one a
    quarter of them. attention: the summed widths of a level's self-attentions; cross: of those that look at the text.
    token: multiply-adds for each of the text's tokens. once: for each picture. layers: how many weights there are.
    """

    dense: tuple[int, ...]
    attention: tuple[int, ...]
    cross: tuple[int, ...]
    token: int
    once: int
    layers: int

    def multiply_adds(self, height: int, width: int) -> int:
        """Of a forward pass for one picture of so many latent cells."""
        total = self.once + TOKENS * self.token
        for level, (dense, attention, cross) in enumerate(zip(self.dense, self.attention, self.cross)):
            cells = -(-height // 2**level) * -(-width // 2**level)
            # scores and their product with the values: two products of (cells, width) by (others, width) each
            total += cells * (dense + 2 * attention * cells + 2 * cross * TOKENS)
        return total


def count_work(shapes: Shapes) -> Work:
    """That of the UNet with these weights."""
    levels = _levels(shapes)
    dense, attention, cross = ([0] * levels.count for _ in range(3))
    token = once = layers = 0
    for name, shape in shapes.items():
        if not name.endswith("weight") or len(shape) < 2:
            continue
        numbers = math.prod(shape)
        layers += 1
        if name.startswith(_ONCE) or any(part in name for part in _ONCE_INSIDE):
            once += numbers
        elif name.endswith(_OF_TEXT):
            token += numbers
        else:
            level = levels.of(name)
            dense[level] += numbers
            if name.endswith(_ATTENTION):
                (attention if ".attn1." in name else cross)[level] += shape[0]
    return Work(tuple(dense), tuple(attention), tuple(cross), token, once, layers)


@dataclass(frozen=True)
class _Levels:
    """downs, ups: the blocks, in LDM's numbers, that end with half and with double the side."""

    downs: tuple[int, ...]
    ups: tuple[int, ...]
    count: int

    def of(self, name: str) -> int:
        """The level that a layer writes to."""
        ldm, diffusers = _LDM_BLOCK.match(name), _DIFFUSERS_BLOCK.match(name)
        last = self.count - 1
        if name.startswith(("middle_block", "mid_block")):
            level = last
        elif ldm:
            kind, block = ldm[1], int(ldm[2])
            if kind == "input":
                level = sum(down <= block for down in self.downs)
            else:
                level = last - sum(up < block for up in self.ups) - bool(_LDM_UP.fullmatch(name))
        elif diffusers:
            kind, block = diffusers[1], int(diffusers[2])
            if kind == "down":
                level = block + (".downsamplers." in name)
            else:
                level = last - block - (".upsamplers." in name)
        else:
            level = 0  # in front and behind
        return min(max(level, 0), last)


def _levels(shapes: Shapes) -> _Levels:
    downs = tuple(int(found[1]) for name in shapes if (found := _LDM_DOWN.fullmatch(name)))
    ups = tuple(int(found[1]) for name in shapes if (found := _LDM_UP.fullmatch(name)))
    blocks = {int(found[2]) for name in shapes if (found := _DIFFUSERS_BLOCK.match(name)) and found[1] == "down"}
    return _Levels(downs, ups, max(len(downs) + 1, len(blocks)))
