"""LoRA files for tests, and a plain merge to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


def layer(
    name: str,
    shape: Iterable[int],
    seed: int,
    *,
    rank: int = 2,
    alpha: float | None = 1.0,
    mid: bool = False,
    size: float = 0.2,
) -> State:
    """Random matrices for a weight of `shape`, under kohya's name; `size` is about that of the change they make."""
    outputs, inputs, *kernel = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*sides: int) -> torch.Tensor:
        return torch.randn(*sides, generator=generator) * (size / rank) ** 0.5

    ones = [1] * len(kernel)
    tensors = {"lora_up.weight": random(outputs, rank, *ones)}
    tensors["lora_down.weight"] = random(rank, inputs, *(ones if mid else kernel))
    if mid:
        tensors["lora_mid.weight"] = random(rank, rank, *kernel)
    if alpha is not None:
        tensors["alpha"] = torch.tensor(alpha)
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


def write(path: Path, state: State, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a LoRA file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(path), dict(metadata) if metadata else None)
    return path


def plain_merge(weight: torch.Tensor, state: State, name: str, strength: float) -> torch.Tensor:
    """`weight` plus what the layer `name` of a LoRA adds, rank by rank, in double precision."""
    up, down = state[f"{name}.lora_up.weight"].double(), state[f"{name}.lora_down.weight"].double()
    mid = state.get(f"{name}.lora_mid.weight")
    rank = len(down)
    scale = strength * (float(state[f"{name}.alpha"]) / rank if f"{name}.alpha" in state else 1.0)
    merged = weight.double().clone()
    for out in range(rank):
        for into in range(rank) if mid is not None else [out]:
            column, row = up[:, out].reshape(-1, 1), down[into].reshape(1, -1)
            if mid is None:
                merged += scale * (column * row).reshape(weight.shape)
            else:
                merged += scale * (column * row)[:, :, None, None] * mid[out, into].double()
    return merged
