"""Noise: predictions pushed towards white noise (arXiv 2302.03027, section 3.1), and what ancestral samplers add.

Losses with their gradients in closed form, so that no graph is kept. Everything is per image of the batch and the
rolls are shared by all, so an image comes out the same whatever it is batched with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_methods.denoiser import OwnNoise

COARSEST = 8
ROUNDS, ROLLS = 5, 5
"""Rounds of auto-correlation steps and one KL step; and those steps of a round, each with its own rolls."""
CORRELATION_WEIGHT, KL_WEIGHT = 20.0, 20.0
_TINY_VARIANCE = 1e-7  # as in the published code, so that a constant has a logarithm
Rolls = Sequence[tuple[int, int]]


def pyramid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of the levels: halved, rounded down, until the smaller side is 8 or less."""
    sizes = [(height, width)]
    while min(sizes[-1]) > COARSEST:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def draw_rolls(height: int, width: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """One roll for each level and dimension (vertical, horizontal), from 1 to less than half of the side.

    Rolls of k and side - k correlate the same pairs. A roll of 0 would measure the variance and is never drawn; it
    stands for a side of one pixel, which has no neighbours.
    """

    def roll(side: int) -> int:
        if side < 2:
            return 0
        highest = max(1, (side - 1) // 2)
        return int(torch.randint(1, highest + 1, (), generator=generator, device=generator.device))

    return [(roll(rows), roll(columns)) for rows, columns in pyramid_sizes(height, width)]


def autocorrelation(noise: Tensor, rolls: Rolls, keep_variance: bool = True) -> tuple[Tensor, Tensor]:
    """The squared auto-correlation of every channel, summed over channels, levels and both dimensions.

    For a level n rolled by k, the term is mean(n * roll(n, k))^2 and its gradient 2 m (roll(n, k) + roll(n, -k)) / HW.

    noise: (batch, channels, height, width). rolls: as `draw_rolls` gives them for its size. keep_variance: every level
    of the pyramid has the variance of the first one (paper); otherwise a level has a quarter of the one before (the
    published code), which leaves large structures nearly unseen.
    Returns the loss (batch,) and its gradient (batch, channels, height, width), float32 or better.
    """
    levels = [noise.to(torch.promote_types(noise.dtype, torch.float32))]
    factor = 2.0 if keep_variance else 1.0  # the mean of four independent values has half their deviation
    for _ in rolls[1:]:
        levels.append(F.avg_pool2d(levels[-1], 2) * factor)
    loss = levels[0].new_zeros(noise.shape[0])
    gradient: Tensor | None = None
    for level, shifts in zip(reversed(levels), reversed(rolls)):
        own = torch.zeros_like(level)
        for shift, dimension in zip(shifts, (-2, -1)):
            if shift == 0:
                continue
            forward, backward = level.roll(shift, dimension), level.roll(-shift, dimension)
            correlation = (level * forward).mean((-2, -1), keepdim=True)
            loss = loss + correlation.square().sum((1, 2, 3))
            own += (forward + backward) * (correlation * 2 / (level.shape[-2] * level.shape[-1]))
        if gradient is not None:
            # each value of a level was pooled from four; an odd last row or column was not seen
            large = gradient.repeat_interleave(2, -2).repeat_interleave(2, -1)
            spread = F.pad(large, (0, level.shape[-1] - large.shape[-1], 0, level.shape[-2] - large.shape[-2]))
            own += spread * (factor / 4)
        gradient = own
    assert gradient is not None
    return loss, gradient


def kl_divergence(noise: Tensor) -> tuple[Tensor, Tensor]:
    """How far mean and variance of each image's noise are from 0 and 1: var + mean^2 - 1 - log(var), twice the KL
    divergence from N(0, 1).

    noise: (batch, channels, height, width). Returns the loss (batch,) and its gradient, float32 or better.
    """
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    count = noise[0].numel()
    mean = noise.mean((1, 2, 3), keepdim=True)
    centred = noise - mean
    variance = centred.square().sum((1, 2, 3), keepdim=True) / (count - 1)
    loss = variance + mean.square() - 1 - (variance + _TINY_VARIANCE).log()
    gradient = centred * (2 / (count - 1) * (1 - 1 / (variance + _TINY_VARIANCE))) + mean * (2 / count)
    return loss.flatten(), gradient


def regularise(noise: Tensor, generator: torch.Generator, keep_variance: bool = True) -> Tensor:
    """The noise after all rounds: `ROLLS` steps against the auto-correlation, then one towards N(0, 1), each round.

    With the variance kept, a step of the paper's weight overshoots where the noise is strongly correlated. As both
    losses have 0 for their minimum, a step is never longer than Polyak's, loss / |gradient|^2; on anything near white
    noise, and with the published code's pyramid, that limit is far away.

    noise: (batch, channels, height, width), any float type; computed in float32 or better, returned in its own type.
    generator: where the rolls are drawn. keep_variance: see `autocorrelation`.
    """
    if noise.dim() != 4 or noise[0].numel() < 2:
        raise ValueError("the noise must have the shape (batch, channels, height, width), with two values or more")
    value = noise.to(torch.promote_types(noise.dtype, torch.float32))
    for _ in range(ROUNDS):
        for _ in range(ROLLS):
            rolls = draw_rolls(noise.shape[-2], noise.shape[-1], generator)
            loss, gradient = autocorrelation(value, rolls, keep_variance)
            value = value - _step(loss, gradient, CORRELATION_WEIGHT / ROLLS)
        value = value - _step(*kl_divergence(value), KL_WEIGHT)
    return value.to(noise.dtype)


def _step(loss: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """The gradient times the weight, or times Polyak's step where that is shorter."""
    squared = gradient.square().sum((1, 2, 3))
    polyak = torch.where(squared > 0, loss.clamp(min=0) / squared.clamp(min=torch.finfo(squared.dtype).tiny), 0.0)
    return gradient * polyak.clamp(max=weight).view(-1, 1, 1, 1)


def ancestral_levels(sigma: float, target: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up) of a step from `sigma` to `target`: the level it goes down to, and the noise it adds.

    sigma_down^2 + sigma_up^2 = target^2; with eta 1 that is a step of DDPM.
    """
    up = min(target, eta * target * math.sqrt(max(0.0, sigma**2 - target**2)) / sigma)
    return math.sqrt(max(0.0, target**2 - up**2)), up


class StepNoise:
    """Noise by step, drawn in the sampler's order at the first request.

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
