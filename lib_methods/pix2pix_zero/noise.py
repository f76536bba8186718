"""Push a predicted noise towards white noise: the regularisation of pix2pix-zero (arXiv 2302.03027, section 3.1).

Losses with their gradients in closed form, so that no graph is kept. Everything is per picture of the batch and the
rolls are shared by all, so a picture comes out the same whatever it is batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_methods.checks import check_number, check_switch

COARSEST = 8
_TINY_VARIANCE = 1e-7  # as in the published code, so that a constant has a logarithm
Rolls = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Regularisation:
    """How a predicted noise is regularised; the defaults are those of the paper.

    rounds: how often it goes through the auto-correlation steps and one KL step, 0 to 50.
    rolls: auto-correlation steps of a round, each with rolls of its own, 1 to 50. They share one weight.
    correlation_weight, kl_weight: step sizes, 0 to 1000; 0 leaves the term out.
    keep_variance: every level of the pyramid has the variance of the first one (paper); off, a level has a quarter of
        the one before (the published code), which leaves large structures nearly unseen.
    """

    rounds: int = 5
    rolls: int = 5
    correlation_weight: float = 20.0
    kl_weight: float = 20.0
    keep_variance: bool = True

    def __post_init__(self) -> None:
        check_number("The number of regularisation rounds", self.rounds, 0, 50)
        check_number("The number of auto-correlation steps", self.rolls, 1, 50)
        check_number("The weight of the auto-correlation", self.correlation_weight, 0, 1000)
        check_number("The weight of the KL term", self.kl_weight, 0, 1000)
        check_switch("Keep the variance", self.keep_variance)
        object.__setattr__(self, "rounds", int(self.rounds))
        object.__setattr__(self, "rolls", int(self.rolls))


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

    noise: (batch, channels, height, width). rolls: as `draw_rolls` gives them for its size.
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
            own += _spread(gradient, level.shape[-2], level.shape[-1]) * (factor / 4)
        gradient = own
    assert gradient is not None
    return loss, gradient


def _spread(gradient: Tensor, height: int, width: int) -> Tensor:
    """What each value of a level adds to the four that it was pooled from; an odd last row or column was not seen."""
    large = gradient.repeat_interleave(2, -2).repeat_interleave(2, -1)
    return F.pad(large, (0, width - large.shape[-1], 0, height - large.shape[-2]))


def kl_divergence(noise: Tensor) -> tuple[Tensor, Tensor]:
    """How far mean and variance of each picture's noise are from 0 and 1: var + mean^2 - 1 - log(var), twice the KL
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


def regularise(noise: Tensor, generator: torch.Generator, settings: Regularisation | None = None) -> Tensor:
    """The noise after all rounds: `rolls` steps against the auto-correlation, then one towards N(0, 1), each round.

    With the variance kept, a step of the paper's weight overshoots where the noise is strongly correlated. As both
    losses have 0 for their minimum, a step is never longer than Polyak's, loss / |gradient|^2; on anything near white
    noise, and with the published code's pyramid, that limit is far away.

    noise: (batch, channels, height, width), any float type; computed in float32 or better, returned in its own type.
    generator: where the rolls are drawn.
    """
    settings = settings or Regularisation()
    if noise.dim() != 4 or noise[0].numel() < 2:
        raise ValueError("the noise must have the shape (batch, channels, height, width), with two values or more")
    value = noise.to(torch.promote_types(noise.dtype, torch.float32))
    for _ in range(settings.rounds):
        if settings.correlation_weight > 0:
            for _ in range(settings.rolls):
                rolls = draw_rolls(noise.shape[-2], noise.shape[-1], generator)
                loss, gradient = autocorrelation(value, rolls, settings.keep_variance)
                value = value - _step(loss, gradient, settings.correlation_weight / settings.rolls)
        if settings.kl_weight > 0:
            value = value - _step(*kl_divergence(value), settings.kl_weight)
    return value.to(noise.dtype)


def _step(loss: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """The gradient times the weight, or times Polyak's step where that is shorter."""
    squared = gradient.square().sum((1, 2, 3))
    polyak = torch.where(squared > 0, loss.clamp(min=0) / squared.clamp(min=torch.finfo(squared.dtype).tiny), 0.0)
    return gradient * polyak.clamp(max=weight).view(-1, 1, 1, 1)
