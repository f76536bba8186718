"""The sizes of a text encoder, from the names and shapes of its weights: transformers' or OpenCLIP's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LAYER = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
_NORM = re.compile(r"(.*\.)?(layer_norm\d|final_layer_norm|ln_\d|ln_final)\.weight")
_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")  # of transformers' modules
_OPEN_CLIP_PARTS = ("token_embedding.", "positional_embedding", "transformer.resblocks.", "ln_final.")
_EMBEDDINGS = ("embeddings.", "token_embedding.", "positional_embedding")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TextSizes:
    """In numbers: count of all, lora and lora_outside those of a LoRA of rank 1 on the linear layers of the encoder's
    blocks and on the others, norms those of the norms' weights. layers: how many blocks there are."""

    count: int
    lora: int
    lora_outside: int
    norms: int
    layers: int


def text_sizes(shapes: Shapes, *, projected: bool, without_last: bool = False) -> TextSizes:
    """Those of the module that is made of these weights, given by their names in the encoder.

    projected: the module has a projection, as SDXL's second one does. without_last: it lacks the last of the blocks.
    """
    found = _bare(shapes, projected)
    blocks = {int(block[1]) for name in found if (block := _LAYER.match(name))}
    if without_last and blocks:
        last = max(blocks)
        blocks.discard(last)
        found = {n: s for n, s in found.items() if not ((block := _LAYER.match(n)) and int(block[1]) == last)}
    linear = {n: s for n, s in found.items() if len(s) == 2 and not n.startswith(_EMBEDDINGS)}
    return TextSizes(
        count=sum(math.prod(shape) for shape in found.values()),
        lora=rank_one(shape for name, shape in linear.items() if _LAYER.match(name)),
        lora_outside=rank_one(shape for name, shape in linear.items() if not _LAYER.match(name)),
        norms=sum(math.prod(shape) for name, shape in found.items() if _NORM.fullmatch(name)),
        layers=len(blocks),
    )


def _bare(shapes: Shapes, projected: bool) -> dict[str, tuple[int, ...]]:
    """The module's weights: without buffers and what only files have, OpenCLIP's query, key and value apart."""
    found: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        name = key.removeprefix("text_model.")
        if name.startswith("text_projection"):
            if projected:
                found["text_projection.weight"] = shape
        elif name.startswith(_PARTS + _OPEN_CLIP_PARTS) and not name.endswith("position_ids"):
            if ".attn.in_proj_" in name and shape:
                found.update({f"{name}.{third}": (shape[0] // 3, *shape[1:]) for third in "qkv"})
            else:
                found[name] = shape
    return found


def rank_one(shapes: Iterable[tuple[int, ...]]) -> int:
    """The numbers of a LoRA of rank 1 on layers of these shapes: an input row and an output column each."""
    return sum(shape[0] + math.prod(shape[1:]) for shape in shapes)
