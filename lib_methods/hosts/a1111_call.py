"""One call of the denoiser of AUTOMATIC1111's WebUI, as methods see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_methods.denoiser import Row


class A1111Call:
    """One call of the host's `CFGDenoiser.forward`."""

    def __init__(self, denoiser: Any, level: Tensor, rows: tuple[Row, ...]) -> None:
        self.rows, self.level = rows, level.detach().flatten()[:1]
        self.step = denoiser_step(denoiser)
        self.index = int(denoiser.step)  # of the call in its sampling, from 0
        self.current_rows: tuple[Row, ...] = ()
        self.coming: tuple[Row, ...] | None = None  # the next rows, where they are not the host's
        self.paused = False
        self.inputs: list[Tensor] = []
        self._done = 0

    def enter_unet(self, latents: Tensor) -> None:
        """The UNet starts on the next rows."""
        if self.paused:
            return
        self.inputs.append(latents)
        if self.coming is not None:
            self.current_rows, self.coming = self.coming, None
            return
        self.current_rows = self.rows[self._done : self._done + len(latents)]
        self._done += len(latents)

    def leave_unet(self) -> None:
        """The UNet is done with its rows."""
        if not self.paused:
            self.current_rows = ()


def denoiser_step(denoiser: Any) -> int:
    """The sampling step; the host counts denoiser calls, of which second-order samplers make two a step."""
    calls, steps = denoiser.total_steps or denoiser.steps or 1, denoiser.steps or 1
    return min(int(denoiser.step * steps / max(1, calls)), steps - 1)
