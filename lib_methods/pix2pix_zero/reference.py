"""The picture as it would be without the edit, step by step beside the edit: what the edit's structure is held to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib_methods.denoiser import Conditioning, EditSampling
from lib_methods.pix2pix_zero.inversion import Trajectory, euler_step
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps


@dataclass
class Reference:
    """The reference's latents in lock-step with a sampler.

    With a trajectory that is exact (direct inversion) they are the inverted picture's own, and the model is run for
    the maps only. Otherwise an Euler step (DDIM) leads from one to the next, from the same noise as the edit's.

    cond: the caption, a row an image. uncond, scale: the negative prompt and the CFG scale for pictures that are drawn
    rather than inverted; None where the caption stands on both sides, so that the guidance cancels.
    """

    sampling: EditSampling
    cond: Conditioning
    start: Tensor
    trajectory: Trajectory | None = None
    uncond: Conditioning | None = None
    scale: float = 1.0
    forwards: int = 0
    _step: int = 0
    _latents: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._levels: list[float] = self.sampling.sigmas.tolist()
        self._latents = self.start

    @property
    def is_exact(self) -> bool:
        """Whether the latents are known without running the model."""
        return self.trajectory is not None and self.trajectory.offsets is not None

    def at(self, step: int) -> Tensor:
        """The reference's latents at the start of a step, (batch, 4, h, w), in sigma space. Steps may be skipped, not
        gone back to."""
        if self.is_exact:
            assert self.trajectory is not None
            return self.trajectory.latents[step].to(self.start)
        while self._step < step:
            self._advance(self._predict(self._now))
        return self._now

    def maps(self, step: int, recorder: MapRecorder) -> Maps:
        """The maps of the caption's rows at a step; leads on to the next step by the same run of the model."""
        latents = self.at(step)
        if self.is_exact:
            self.forwards += 1
            return recorder.run_to_last(lambda: self.sampling.predict(latents, self._levels[step], self.cond)).detach()
        if self._step != step:  # asked a second time
            raise ValueError(f"the reference is at step {self._step} already, not at {step}")
        maps, denoised = recorder.run(lambda: self._predict(latents))
        self._advance(denoised)
        count = len(latents)
        return maps.detach() if self.uncond is None else maps.detach().select(range(count))

    def final(self) -> Tensor:
        """What the sampler would have ended with, (batch, 4, h, w)."""
        return self.at(len(self._levels) - 1)

    @property
    def _now(self) -> Tensor:
        assert self._latents is not None
        return self._latents

    def _advance(self, denoised: Tensor) -> None:
        self._latents = euler_step(self._now, denoised, self._levels[self._step], self._levels[self._step + 1])
        self._step += 1

    def _predict(self, latents: Tensor) -> Tensor:
        level = self._levels[self._step]
        if self.uncond is None:
            self.forwards += 1
            return self.sampling.predict(latents, level, self.cond)
        self.forwards += 2
        both = Conditioning(
            torch.cat([self.cond.context, self.uncond.context]),
            None
            if self.cond.vector is None or self.uncond.vector is None
            else torch.cat([self.cond.vector, self.uncond.vector]),
        )
        cond, uncond = self.sampling.predict(torch.cat([latents, latents]), level, both).chunk(2)
        return uncond + self.scale * (cond - uncond)
