"""The kinds of layers in LoRA files, and what each adds to a weight: the formulas of LyCORIS and of the WebUI v1.10.1.

All work on float32, and on the device "meta" when only the shapes are needed. LyCORIS: Yeh et al. 2024,
arXiv:2309.14859; DoRA: Liu et al. 2024, equation 5; OFT: Qiu et al. 2023; BOFT: Liu et al. 2024, arXiv:2311.06243.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
OTHER_SIZE = "made for another size"


class DoesNotFit(ValueError):
    """Why a layer cannot be added to the weight with its name, as it stands before a list of such layers."""


@dataclass(frozen=True)
class Kind:
    """change(parts, weight, ranks): what is added at strength one before `alpha`, and the rank that divides alpha."""

    name: str
    needs: tuple[str, ...]
    change: Callable[[Parts, Tensor, int | None], tuple[Tensor, int | None]]
    also: tuple[str, ...] = ()


SHARED = ("alpha", "scale", "dora_scale", "magnitude", "bias", "diff_b")
"""Parts that a layer of any kind may have."""


def _matrix(tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or 0 in tensor.shape:
        raise DoesNotFit("no matrices")
    return tensor.flatten(1)


def _product(up: Tensor, down: Tensor, weight: Tensor, ranks: int | None = None) -> Tensor:
    up, down = _matrix(up), _matrix(down)
    if up.shape[1] != down.shape[0]:
        raise DoesNotFit("halves of different ranks")
    if weight.ndim < 2 or (len(up), down.shape[1]) != (len(weight), math.prod(weight.shape[1:])):
        raise DoesNotFit(OTHER_SIZE)
    return (up[:, :ranks] @ down[:ranks]).reshape(weight.shape)


def _tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A convolution from its core (a, b, k, k), `up` (a, outputs) and `down` (b, inputs)."""
    if core.ndim != 4 or core.shape[:2] != (len(up), len(down)):
        raise DoesNotFit("halves of different ranks")
    return torch.einsum("abkl,ao,bi->oikl", core, up, down)


def _lora(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, int]:
    up, down = _matrix(parts["up"]), _matrix(parts["down"])
    if "mid" in parts:
        return _tucker(parts["mid"], up.T, down), len(down)
    return _product(up, down, weight, ranks), len(down)


def _loha(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, int]:
    halves = []
    for n in "12":
        up, down, core = parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}")
        full = _product(up, down, weight) if core is None else _tucker(core, _matrix(up), _matrix(down))
        halves.append(full)
    if halves[0].shape != halves[1].shape:
        raise DoesNotFit(OTHER_SIZE)
    return halves[0] * halves[1], len(parts["hada_w1_b"])


def _lokr(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, int | None]:
    rank: int | None = None
    factors = []
    for n in "12":
        full = parts.get(f"lokr_w{n}")
        if full is None:
            up, down = (_matrix(parts[f"lokr_w{n}_{half}"]) for half in "ab")
            rank, core = len(down), parts.get(f"lokr_t{n}")
            if core is None and up.shape[1] != len(down):
                raise DoesNotFit("halves of different ranks")
            full = up @ down if core is None else _tucker(core, up, down)
        factors.append(_matrix(full))
    change = torch.kron(factors[0].contiguous(), factors[1].contiguous())
    if weight.ndim < 2 or change.shape != weight.flatten(1).shape:
        raise DoesNotFit(OTHER_SIZE)
    return change.reshape(weight.shape), rank


def _glora(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, int]:
    a1, a2, b1, b2 = (_matrix(parts[f"{name}.weight"]) for name in ("a1", "a2", "b1", "b2"))
    inputs, outputs = weight.shape[1] if weight.ndim > 1 else 0, len(weight)
    rank = len(b1)
    if not (a1.shape == (rank, inputs) and a2.shape == (inputs, rank) and b2.shape == (outputs, rank)):
        a1, a2, b1, b2 = a2, a1, b2, b1  # LyCORIS has changed places since the WebUI learnt to read these
        rank = len(b1)
        if not (a1.shape == (rank, inputs) and a2.shape == (inputs, rank) and b2.shape == (outputs, rank)):
            raise DoesNotFit(OTHER_SIZE)
    return _product(b2, b1, weight) + torch.einsum("oi...,ij->oj...", weight, a2 @ a1), rank


def _full(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    return _as(parts["diff"], weight), None


def _norm(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    if weight.ndim != 1:
        raise DoesNotFit(OTHER_SIZE)
    return _as(parts["w_norm"], weight), None


def _as(tensor: Tensor, weight: Tensor) -> Tensor:
    if tensor.numel() != weight.numel() or tensor.ndim == 0 or len(tensor) != len(weight):
        raise DoesNotFit(OTHER_SIZE)
    return tensor.reshape(weight.shape)


def _ia3(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    return weight * _along(parts["weight"], weight, 1 if bool(parts["on_input"].any()) else 0), None


def _ia3_of_peft(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    factor = parts["ia3_l"]  # LyCORIS stores by how much this differs from one
    if factor.ndim == 4:  # (1, n, 1, 1) for outputs and inputs; of outputs unless it is for feed-forward layers
        axis = 0 if factor.numel() == len(weight) else 1
    else:  # (outputs, 1) or (1, inputs)
        axis = 1 if factor.ndim == 2 and factor.shape[0] == 1 else 0
    return weight * _along(factor - 1, weight, axis), None


def _along(tensor: Tensor, weight: Tensor, axis: int) -> Tensor:
    """The numbers of `tensor`, one for each output (axis 0) or input (1) of `weight`, in a shape that broadcasts."""
    if weight.ndim <= axis or tensor.numel() != weight.shape[axis]:
        raise DoesNotFit(OTHER_SIZE)
    sides = [1] * weight.ndim
    sides[axis] = -1
    return tensor.reshape(sides)


def _rotation(blocks: Tensor, constraint: float) -> Tensor:
    """Cayley's transform of the blocks' skew-symmetric parts, whose norm is at most `constraint` unless that is 0."""
    skew = blocks - blocks.transpose(-1, -2)
    if constraint:
        skew = skew * (constraint / (skew.norm() + 1e-8)).clamp(max=1)
    eye = torch.eye(blocks.shape[-1], device=blocks.device)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def _oft(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    blocks, outputs = parts["oft_blocks"], len(weight)
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise DoesNotFit(OTHER_SIZE)
    if blocks.shape[-3] * blocks.shape[-1] != outputs or weight.ndim < 2:
        raise DoesNotFit(OTHER_SIZE)
    alpha = parts.get("alpha")
    rotation = _rotation(blocks, 0.0 if alpha is None else float(alpha) * outputs)
    turned = _turned(rotation, weight) if blocks.ndim == 3 else _butterfly(rotation, weight)
    return _rescaled(parts, turned) - weight, None


def _old_oft(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    blocks = parts["oft_diag"]  # the rotations themselves
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or weight.ndim < 2:
        raise DoesNotFit(OTHER_SIZE)
    if blocks.shape[0] * blocks.shape[1] != len(weight):
        raise DoesNotFit(OTHER_SIZE)
    return _rescaled(parts, _turned(blocks, weight)) - weight, None


def _rescaled(parts: Parts, turned: Tensor) -> Tensor:
    return turned if "rescale" not in parts else _along(parts["rescale"], turned, 0) * turned


def _turned(rotation: Tensor, weight: Tensor) -> Tensor:
    rows = weight.reshape(*rotation.shape[:2], -1)
    return torch.einsum("knm,knx->kmx", rotation, rows).reshape(weight.shape)


def _butterfly(rotations: Tensor, weight: Tensor) -> Tensor:
    """One rotation after another; before each, rows that lie further and further apart come together."""
    rows = weight.flatten(1)
    for number, rotation in enumerate(rotations):
        side = 2**number * (rotation.shape[-1] // 2)
        if not side or len(rows) % (2 * side):
            raise DoesNotFit(OTHER_SIZE)
        together = rows.reshape(-1, 2, side, rows.shape[1]).transpose(1, 2).reshape(*rotation.shape[:2], -1)
        turned = torch.einsum("bij,bjx->bix", rotation, together)
        rows = turned.reshape(-1, side, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
    return rows.reshape(weight.shape)


def _bias_only(parts: Parts, weight: Tensor, ranks: int | None) -> tuple[Tensor, None]:
    return torch.zeros_like(weight), None


KINDS = (
    Kind("LoRA", ("up", "down"), _lora, ("mid",)),
    Kind("LoHa", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _loha, ("hada_t1", "hada_t2")),
    Kind("(IA)3", ("weight", "on_input"), _ia3),
    Kind("(IA)3", ("ia3_l",), _ia3_of_peft),
    *(
        Kind("LoKr", (*first, *second), _lokr, ("lokr_t1", "lokr_t2"))
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    Kind("full", ("diff",), _full),
    Kind("norm", ("w_norm",), _norm, ("b_norm",)),
    Kind("GLoRA", ("a1.weight", "a2.weight", "b1.weight", "b2.weight"), _glora),
    Kind("OFT", ("oft_blocks",), _oft, ("rescale",)),
    Kind("OFT", ("oft_diag",), _old_oft, ("rescale",)),
    Kind("bias", ("diff_b",), _bias_only),
)
