"""Writes into the latents of a sampler of AUTOMATIC1111's WebUI: the editors' part, and a start of the method's own.

The denoiser is handed the sampler's own tensor, and every sampler goes on from that tensor. So what is written into it
in place is what the sampler goes on with. UniPC alone asks the model about latents that it foresees, and goes on from
those that it corrects with the answer; it shows them to its callback, where they are moved by as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib_methods.denoiser import Editor
from lib_methods.hosts.a1111_call import A1111Call
from lib_methods.hosts.a1111_start import is_unipc
from lib_methods.hosts.levels import Levels
from lib_methods.hosts.passes import Pass, is_stopped, put_back


@dataclass(frozen=True)
class NewStart:
    """Latents to start from, those that the host would start from, both at `sigma`, in sigma space."""

    latents: Tensor
    instead_of: Tensor
    sigma: float


class Edits:
    """What is written into the latents of one pass of a sampler."""

    def __init__(self, current: Pass, denoiser: Any, sampler: Any, levels: Levels) -> None:
        self.current, self.denoiser, self.levels = current, denoiser, levels
        self.start: NewStart | None = None
        self.editors: dict[type, Editor] = {}
        self._unsettled: Tensor | None = None
        self._foresees = is_unipc(getattr(sampler.func, "__name__", ""))
        if self._foresees:
            before = vars(sampler).get("callback_state")
            self._report, sampler.callback_state = sampler.callback_state, self._settle
            current.at_end(put_back, sampler, "callback_state", self._settle, before)

    def sigma(self, call: A1111Call) -> float:
        """The noise of a call."""
        level = float(call.level.item())
        return level if getattr(self.denoiser, "alphas", None) is None else self.levels.sigma(level)

    def before(self, call: A1111Call, x: Tensor) -> None:
        """Start from the given latents and ask the editors; x: the sampler's latents, written in place."""
        self._unsettled = None
        editors = list(self.editors.values())
        start, self.start = (None, self.start) if call.index else (self.start, None)
        if (start is None and not editors) or is_stopped():
            return
        sigma = self.sigma(call)
        scale = 1.0 if getattr(self.denoiser, "alphas", None) is None else (1 + sigma**2) ** 0.5
        with torch.no_grad():
            if start is not None:
                if abs(start.sigma - sigma) <= 1e-4 * sigma:
                    x.copy_(start.latents / scale)
                else:  # the sampler has added noise before the first call: that stays
                    x.add_(((start.latents - start.instead_of) / scale).to(x))
            given = found = x.detach().float() * scale
        for editor in editors:
            found = editor.before(call, found)
            if found.shape != x.shape:
                raise ValueError(f"An editor made latents of the shape {tuple(found.shape)} of {tuple(x.shape)}.")
        if found is not given:
            with torch.no_grad():
                old = x.clone() if self._foresees and call.index else None
                if scale == 1:
                    x.copy_(found.detach())
                else:  # what was not moved stays as it was to the last bit
                    x.add_(((found.detach() - given) / scale).to(x))
                self._unsettled = None if old is None else x - old

    def _settle(self, state: dict[str, Any]) -> None:
        """In place of UniPC's callback: what it goes on with is moved as what it asked about was."""
        moved, self._unsettled = self._unsettled, None
        if moved is not None:
            with torch.no_grad():
                state["x"].add_(moved.to(state["x"]))
        self._report(state)
