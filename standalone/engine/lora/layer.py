"""One layer of a LoRA file: its parts, and the change of weight and bias that they make together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..names import shown
from .kinds import KINDS, OTHER_SIZE, SHARED, DoesNotFit, Kind

LATENT_CHANNELS = 4
WIDENED = (8, 9)  # input channels of InstructPix2Pix and inpainting models
NOT_FINITE = "NaN or infinite values"
_LISTED = 4


@dataclass(frozen=True)
class LoraLayer:
    """A layer as the file has it. parts: tensors by names.PARTS' names. alpha: where the file has no tensor for it."""

    name: str
    parts: Mapping[str, Tensor]
    alpha: float | None = None

    @cached_property
    def kind(self) -> Kind | None:
        """The first in the table that has all it needs."""
        return next((kind for kind in KINDS if set(kind.needs) <= self.parts.keys()), None)

    @property
    def left_out(self) -> list[str]:
        """The names of parts that are not understood, where the others are."""
        known = () if self.kind is None else (*self.kind.needs, *self.kind.also, *SHARED)
        return sorted(self.parts.keys() - set(known))

    @cached_property
    def finite(self) -> bool:
        return all(bool(part.float().isfinite().all()) for part in self.parts.values())

    @property
    def switched_off(self) -> bool:
        """Whether it changes nothing because its alpha is 0."""
        alpha = self.parts.get("alpha")
        ranked = self.kind is not None and not {"oft_blocks", "oft_diag"} & self.parts.keys()
        return ranked and "scale" not in self.parts and alpha is not None and not bool(alpha.any())

    @property
    def inputs(self) -> int | None:
        """How many inputs the weight has that this layer was made for, where that is plain to see."""
        for key in ("down", "hada_w1_b", "diff"):
            part = self.parts.get(key)
            if part is not None and part.ndim > 1:
                return part.shape[1]
        return None

    def check(self, shape: Sequence[int]) -> None:
        """Raises DoesNotFit where a weight of `shape` cannot take this layer; computes nothing."""
        if self.kind is None:
            raise self._unknown()
        if not self.finite:
            raise DoesNotFit(NOT_FINITE)
        self.change(torch.empty(tuple(shape), device="meta"))

    def change(self, weight: Tensor, ranks: int | None = None) -> tuple[Tensor, Tensor | None]:
        """What is added to `weight` (float32) and to its bias at strength one, as float32 on the weight's device.

        ranks: take only the first so many of a LoRA. Raises DoesNotFit.
        """
        try:
            return self._change(weight, ranks)
        except (DoesNotFit, RuntimeError) as error:
            if weight.ndim == 4 and weight.shape[1] in WIDENED:
                # made for a model without the inputs that were added: these stay as they are
                change, bias = self.change(weight[:, :LATENT_CHANNELS], ranks)
                return nn.functional.pad(change, (0, 0, 0, 0, 0, weight.shape[1] - LATENT_CHANNELS)), bias
            if isinstance(error, (DoesNotFit, torch.OutOfMemoryError)):
                raise
            raise DoesNotFit(OTHER_SIZE) from error

    def _change(self, weight: Tensor, ranks: int | None) -> tuple[Tensor, Tensor | None]:
        if self.kind is None:
            raise self._unknown()
        small = ("alpha", "scale", "on_input")  # read as numbers, so they stay where they are
        if any(not part.is_floating_point() for key, part in self.parts.items() if key not in small):
            raise DoesNotFit("no matrices")
        parts = {
            key: part.float() if key in small else part.to(weight.device, torch.float32)
            for key, part in self.parts.items()
        }
        change, rank = self.kind.change(parts, weight, ranks)
        if change.shape != weight.shape:
            raise DoesNotFit(OTHER_SIZE)
        if "bias" in parts:
            change = change + parts["bias"].reshape(weight.shape)
        change = change * self._scale(rank)
        magnitude = parts.get("magnitude", parts.get("dora_scale"))
        if magnitude is not None:
            change = _decomposed(change + weight, magnitude, "magnitude" in parts) - weight
        bias = parts.get("diff_b", parts.get("b_norm"))
        if bias is not None and bias.shape != weight.shape[:1]:
            raise DoesNotFit(OTHER_SIZE)
        if not change.is_meta and not all(bool(each.isfinite().all()) for each in (change, bias) if each is not None):
            raise DoesNotFit(NOT_FINITE)
        return change, bias

    def _unknown(self) -> DoesNotFit:
        return DoesNotFit(
            f"of an unknown kind or incomplete (parts: {', '.join(map(shown, sorted(self.parts)[:_LISTED]))})"
        )

    def _scale(self, rank: int | None) -> float:
        scale, alpha = self._number("scale"), self._number("alpha")
        if scale is not None:
            return scale
        alpha = self.alpha if alpha is None else alpha
        return 1.0 if alpha is None or rank is None else alpha / rank

    def _number(self, key: str) -> float | None:
        part = self.parts.get(key)
        if part is None:
            return None
        value = float(part) if part.numel() == 1 else math.nan
        if not math.isfinite(value):
            raise DoesNotFit(f"no valid {key}")
        return value


def _decomposed(merged: Tensor, magnitude: Tensor, of_outputs: bool) -> Tensor:
    """DoRA: `merged` with the norm of each output or input set to `magnitude`, whose shape says which it is.

    The WebUI's own are (1, inputs, ...), those of newer LyCORIS (outputs, 1, ...); PEFT's are always of the outputs.
    """
    if merged.ndim < 2:
        raise DoesNotFit(OTHER_SIZE)
    outputs, inputs = merged.shape[:2]
    if of_outputs or (magnitude.ndim > 1 and magnitude.shape[0] == outputs and magnitude.numel() == outputs):
        axis, count = 0, outputs
    else:
        axis, count = 1, inputs
    if magnitude.numel() != count:
        raise DoesNotFit(OTHER_SIZE)
    sides = [1] * merged.ndim
    sides[axis] = -1
    norm = merged.transpose(0, axis).flatten(1).norm(dim=1).reshape(sides)
    return merged * (magnitude.reshape(sides) / (norm + torch.finfo(torch.float32).eps))
