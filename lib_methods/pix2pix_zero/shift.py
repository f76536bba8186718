"""The edit direction in the rows of a sampling that see the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import ContextShift, shifted_context
from lib_methods.denoiser import DenoiserCall, Role, Row, Sampling

_CONTEXT = ("context", "encoder_hidden_states")
_POOLED = "text_embeds"  # diffusers takes the pooled text and the sizes apart, `sgm` as one "y"


class Shift:
    """The direction in the prompt's rows, under AND in each part's. Implements `lib_methods.denoiser.Hook`.

    directions: for each image what is added to its prompt's context, (tokens, dim). vectors: the same for SDXL's pooled
    text and sizes, (width,) or None; none for other models.

    Counts for the UNet that it was made for: a refiner has another text encoder.
    """

    missed = ""
    idle = "The edit did not reach the model."

    def __init__(
        self,
        sampling: Sampling,
        directions: Sequence[Tensor],
        vectors: Sequence[Tensor | None] = (),
        strength: float = 1,
    ) -> None:
        self.sampling = sampling
        self._unet = sampling.unet
        self.acted = False
        self.shifts = [_scaled(direction, strength) for direction in directions]
        self.vectors = [_scaled(vector, strength) for vector in vectors] or [None] * len(directions)
        self._tokens = 0  # of the prompt that is in the UNet

    @property
    def is_current(self) -> bool:
        """Whether the sampling still runs the UNet that this was made for."""
        return self.sampling.unet is self._unet

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        if not self.is_current:
            yield
            return

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            rows = call.current_rows
            self.acted = self.acted or bool(rows)
            self._tokens = _tokens(args, kwargs)
            changed = _with_vectors(kwargs, [self._of(row, self.vectors) for row in rows])
            return None if changed is None else (args, changed)

        shift = ContextShift(lambda: [self._of(row, self.shifts) for row in call.current_rows])
        entering = self._unet.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with shifted_context(self._unet, shift):
                yield
        finally:
            entering.remove()

    def _of(self, row: Row, added: Sequence[Tensor | None]) -> Tensor | None:
        return added[row.image] if row.role is Role.COND else None


def _scaled(direction: Tensor | None, strength: float) -> Tensor | None:
    """None where nothing would be added."""
    scaled = None if direction is None else strength * direction
    return scaled if scaled is not None and bool(scaled.any()) else None


def _tokens(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    named = next((kwargs[name] for name in _CONTEXT if isinstance(kwargs.get(name), Tensor)), None)
    context = named if named is not None else args[2] if len(args) > 2 else None
    return int(context.shape[1]) if isinstance(context, Tensor) else 0


def _with_vectors(kwargs: dict[str, Any], shifts: Sequence[Tensor | None]) -> dict[str, Any] | None:
    """The UNet's arguments with the pooled text moved; None where that is not asked for, or not possible."""
    added = kwargs.get("added_cond_kwargs")
    inside = added if isinstance(added, dict) and _POOLED in added else None
    vector = kwargs.get("y") if inside is None else inside[_POOLED]
    if not isinstance(vector, Tensor) or len(vector) != len(shifts) or all(shift is None for shift in shifts):
        return None
    moved = vector.clone()
    wide = torch.promote_types(vector.dtype, torch.float32)
    for row, shift in enumerate(shifts):
        if shift is not None:
            moved[row] = (vector[row].to(wide) + shift[: vector.shape[1]].to(vector.device, wide)).to(vector.dtype)
    return {**kwargs, "y": moved} if inside is None else {**kwargs, "added_cond_kwargs": {**inside, _POOLED: moved}}
