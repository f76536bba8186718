"""The reference: the image without the edit, sampled beside it, which the edit's structure follows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib_methods.denoiser import Conditioning, Editing
from lib_methods.guidance import combine
from lib_methods.pix2pix_zero.inversion import Trajectory, euler_step
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps
from lib_methods.pix2pix_zero.noise import StepNoise


@dataclass
class Reference:
    """The reference's latents in lock-step with a sampler.

    With a trajectory that is exact (direct inversion, DDPM) they are the inverted image's own, and the model is run
    for the maps only. Otherwise an Euler step (DDIM) leads from one to the next, from the same noise as the edit's.

    cond: the caption, a row an image. uncond, scale: the negative prompt and the CFG scale for images that are
    generated rather than inverted; None where the caption is on both sides, so that the guidance cancels. noise: what
    the sampler adds at every step, None for a deterministic one."""

    editing: Editing
    cond: Conditioning
    start: Tensor
    trajectory: Trajectory | None = None
    uncond: Conditioning | None = None
    scale: float = 1.0
    noise: StepNoise | None = None
    _step: int = field(default=0, init=False)
    _now: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._levels: list[float] = self.editing.sigmas.tolist()
        self._now = self.start

    @property
    def is_exact(self) -> bool:
        """Whether the latents are known without running the model."""
        return self.trajectory is not None and self.trajectory.offsets is not None

    def at(self, step: int) -> Tensor:
        """The reference's latents at the start of a step, (batch, 4, h, w), in sigma space. Steps may be skipped; those
        that it has left raise ValueError, except on an exact trajectory."""
        if self.is_exact:
            assert self.trajectory is not None
            return self.trajectory.latents[step].to(self.start)
        if self._step > step:
            raise ValueError(f"the reference is at step {self._step} already, not at {step}")
        while self._step < step:
            self._advance(self._guided(self._predict(self.cond)))
        return self._now

    def maps(self, step: int, recorder: MapRecorder) -> Maps:
        """The maps of the caption's rows at a step; leads on to the next step by the same run of the model."""
        latents, level = self.at(step), self._levels[step]
        if self.is_exact:
            return recorder.run_to_last(lambda: self.editing.predict(latents, level, self.cond)).detach()
        maps, denoised = recorder.run(lambda: self._predict(self.cond))
        self._advance(self._guided(denoised))
        count = len(latents)
        return maps.detach() if maps.rows == count else maps.detach().select(range(count))

    @property
    def known_final(self) -> Tensor | None:
        """What the sampler would have ended with, (batch, 4, h, w), where no run of the model is left for that."""
        last = len(self._levels) - 1
        return self.at(last) if self.is_exact or self._step == last else None

    def final(self) -> Tensor:
        """What the sampler would have ended with, (batch, 4, h, w)."""
        return self.at(len(self._levels) - 1)

    def correction(self, step: int, sigma: float) -> Tensor:
        """What a prediction at the level sigma, in a step, must be moved by so that the inverted image stays on its
        exact trajectory, (batch, 4, h, w).

        A step leads there along a straight line, on which the prediction would be the same everywhere. What the model
        predicts is known at both ends of the step, and taken to be in between in between.
        """
        assert self.is_exact
        if self.noise is not None and self.noise.adds(step):
            return torch.zeros_like(self.start)  # the sampler's noise is what it takes
        wanted, found = self._wanted(step), self._found(step)
        here, there = self._levels[step], self._levels[step + 1]
        share = min(1.0, max(0.0, (here - sigma) / (here - there)))
        if share > 0 and step + 2 < len(self._levels):
            found = torch.lerp(found, self._found(step + 1), share)
        return wanted - found

    def straight(self, step: int, latents: Tensor, target: Tensor) -> Tensor:
        """The prediction that leads from latents at the start of a step to a target at its end."""
        here, there = self._levels[step : step + 2]
        if self.noise is not None:
            there, target = self.noise.down(step), target - self.noise.added(step)
        return latents - here * (target - latents) / (there - here)

    def _wanted(self, step: int) -> Tensor:
        """The prediction that leads straight from a step to the next."""
        assert self.trajectory is not None
        return self.straight(step, self.trajectory.latents[step], self.trajectory.latents[step + 1])

    def _found(self, step: int) -> Tensor:
        """What the model predicts at the start of a step."""
        assert self.trajectory is not None and self.trajectory.offsets is not None
        here, there = self._levels[step : step + 2]
        # an Euler step to `there` with a prediction that is `d here / (here - there)` larger ends d further
        return self._wanted(step) - self.trajectory.offsets[step] * (here / (here - there))

    def _advance(self, denoised: Tensor) -> None:
        here, there = self._levels[self._step : self._step + 2]
        if self.noise is None:
            self._now = euler_step(self._now, denoised, here, there)
        else:
            down = euler_step(self._now, denoised, here, self.noise.down(self._step))
            self._now = down + self.noise.added(self._step)
        self._step += 1

    def _predict(self, cond: Conditioning) -> Tensor:
        """The prediction for the caption, followed by that for the negative prompt where both fit into one run."""
        latents, level = self._now, self._levels[self._step]
        if self.uncond is not None and self._fit_together and cond is self.cond:
            vectors = [part.vector for part in (cond, self.uncond) if part.vector is not None]
            vector = torch.cat(vectors) if len(vectors) == 2 else None
            both = Conditioning(torch.cat([cond.context, self.uncond.context]), vector)
            return self.editing.predict(torch.cat([latents, latents]), level, both)
        return self.editing.predict(latents, level, cond)

    def _guided(self, found: Tensor) -> Tensor:
        """From what `_predict` gives for the caption."""
        if self.uncond is None:
            return found
        cond, uncond = found.chunk(2) if self._fit_together else (found, self._predict(self.uncond))
        return combine(uncond, cond - uncond, self.scale)

    @property
    def _fit_together(self) -> bool:
        return self.uncond is not None and self.uncond.context.shape == self.cond.context.shape
