"""An average of the weights over the training, kept in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.sharding import joined, local, sharded_like


class Ema:
    """Exponential moving average: average = d * average + (1 - d) * weights.

    d rises with the number n of updates, min(decay, (1 + n) / (10 + n)), so that a short training is not mostly its
    beginning. every: steps between two updates, each then with d to the power of `every`; copying all weights from the
    GPU takes time. Of sharded weights each process averages its own part; `state_dict` and `load_state_dict`, which
    have all of them, are collective then.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float, every: int = 1) -> None:
        if not 0 <= decay < 1 or every < 1:
            raise ValueError("decay must be in [0, 1), and every must be 1 or more")
        self.parameters = list(parameters)
        self.decay, self.every = decay, every
        self.steps = 0
        self.averages = [local(p.detach()).to("cpu", torch.float32, copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step into account."""
        self.steps += 1
        if self.steps % self.every:
            return
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps)) ** self.every
        for average, parameter in zip(self.averages, self.parameters):
            average.lerp_(local(parameter.detach()).to("cpu", torch.float32), 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; after it, its own, bit by bit."""
        own = [local(parameter.detach()).to("cpu", copy=True) for parameter in self.parameters]
        try:
            self._write(self.averages)
            yield
        finally:
            self._write(own)

    def state_dict(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The averages under their numbers, and the number of steps. keep: see `sharding.gathered`."""
        state = {"steps": torch.tensor(self.steps)}
        for number, (average, parameter) in enumerate(zip(self.averages, self.parameters)):
            found = joined(average, parameter.detach())
            if keep:
                state[str(number)] = found.to("cpu", copy=True)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave. Raises `DreamBoothError` where it is of other weights."""
        wanted = {str(number): parameter.shape for number, parameter in enumerate(self.parameters)}
        if {name: value.shape for name, value in state.items() if name != "steps"} != wanted or "steps" not in state:
            raise DreamBoothError("The saved averages belong to other weights: this training cannot be gone on from.")
        for number, (average, parameter) in enumerate(zip(self.averages, self.parameters)):
            average.copy_(local(sharded_like(parameter, state[str(number)])))
        self.steps = int(state["steps"])

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values):
            local(parameter).copy_(value)
