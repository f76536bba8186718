"""The noise that an ancestral sampler adds step by step, shared by an edit and its reference."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lib_methods.denoiser import OwnNoise
from lib_methods.pix2pix_zero.ddpm import NoisePath, ancestral_levels


class StepNoise:
    """Noise by step, drawn in the sampler's order when it is first asked for, whoever asks.

    levels: the sampler's, (steps + 1). source: gives the noise of a step, counted from 0, (batch, 4, h, w); asked once
    for each step that adds some, in order.
    """

    def __init__(self, levels: list[float], own: OwnNoise, source: Callable[[int], Tensor]) -> None:
        self._source, self._scale = source, own.scale
        self._steps = [ancestral_levels(here, there, own.eta) for here, there in zip(levels, levels[1:])]
        self._drawn: list[Tensor] = []  # of the steps that add noise, which are the first ones
        self._given = 0

    def down(self, step: int) -> float:
        """The level that a step goes down to before its noise is added."""
        return self._steps[step][0]

    def adds(self, step: int) -> bool:
        """Whether a step adds noise."""
        return self._steps[step][1] > 0

    def added(self, step: int) -> Tensor | float:
        """What a step adds, (batch, 4, h, w); 0 where it adds nothing."""
        return self._noise(step) * (self._steps[step][1] * self._scale) if self.adds(step) else 0.0

    def next(self) -> Tensor:
        """As the sampler asks for it: the next step's noise, of size one."""
        self._given += 1
        return self._noise(self._given - 1)

    def _noise(self, step: int) -> Tensor:
        while len(self._drawn) <= step:
            self._drawn.append(self._source(len(self._drawn)))
        return self._drawn[step]


def noise_of(path: NoisePath) -> StepNoise:
    """The noise of a picture that was found again."""
    noises, settings = path.noises, path.settings
    return StepNoise(path.sigmas.tolist(), OwnNoise(settings.eta, settings.noise_scale), lambda step: noises[step])
