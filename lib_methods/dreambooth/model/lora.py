"""LoRA layers of the trainer's own, put onto a model's layers, whose weights stay untouched.

W x + alpha / rank * up(down(x)), Hu et al. 2021, equation 3. Forward hooks add to what the model's layers give: none is
replaced or renamed. The LoRA's weights are in single precision whatever the model's are; they are computed in the
precision of the layer's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.errors import UserError

ATTENTION = ("Transformer2DModel", "Attention")  # the second stands alone in a pixel cascade
CONVOLUTIONS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_TEXT = "encoder.layers."

Base = nn.Linear | nn.Conv2d


class LoraLayer(nn.Module):
    """`down` (rank, in[, k, k]) and `up` (out, rank[, 1, 1]) for one layer; the change is zero at the start."""

    def __init__(self, base: Base, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, alpha / rank
        self.convolution: dict[str, Any] | None = None
        ones: tuple[int, ...] = ()
        if isinstance(base, nn.Conv2d):
            ones = (1, 1)
            self.convolution = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
        outputs, inputs, *kernel = base.weight.shape
        bound = 1 / math.sqrt(inputs * math.prod(kernel))  # kaiming_uniform with a = sqrt(5), as torch starts layers
        start = torch.rand(rank, inputs, *kernel, generator=generator) * (2 * bound) - bound
        self.down = nn.Parameter(start)
        self.up = nn.Parameter(torch.zeros(outputs, rank, *ones))

    def change(self) -> Tensor:
        """What it adds to the layer's weight, in fp32."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).view(-1, *self.down.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.convolution is None:
            return functional.linear(functional.linear(x, down), up) * self.scale
        return functional.conv2d(functional.conv2d(x, down, **self.convolution), up) * self.scale


@dataclass(frozen=True)
class StartLayer:
    """Initial `down` and `up` of a LoRA layer in fp32, with its own rank and alpha."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True)
class Place:
    """Where a LoRA layer goes: `part` "unet" or "text", the `number` of the text encoder, the layer's name in it."""

    part: str
    number: int
    name: str
    base: Base

    @property
    def key(self) -> str:
        """The place as a name."""
        return f"{self.part}{self.number}_{self.name.replace('.', '_')}"


def places(model: TrainingModel, *, convolutions: bool = False, text: bool = False) -> list[Place]:
    """The layers that a LoRA trains: those that kohya's networks.lora takes.

    All linear layers and 1x1 convolutions of the UNet's transformers; with `convolutions` those of its residual blocks
    and samplers, too; with `text` the linear layers of the text encoders' blocks.
    """
    wanted = ATTENTION + (CONVOLUTIONS if convolutions else ())
    inside = tuple(
        f"{name}." for name, module in model.unet.named_modules() if type(module).__name__ in wanted and name
    )
    found = [Place("unet", 0, name, base) for name, base in _layers(model.unet) if name.startswith(inside)]
    if text:
        for number, encoder in enumerate(model.encoders):
            for name, base in _layers(encoder):
                before, level, after = name.partition(_TEXT)
                if level and isinstance(base, nn.Linear) and (not before or before.endswith(".")):
                    found.append(Place("text", number, level + after, base))
    if not any(place.part == "unet" for place in found):
        raise UserError("This model's UNet has no layers that a LoRA can be put on.")
    return found


def all_places(model: TrainingModel) -> list[Place]:
    """Every layer of UNet and text encoders that a LoRA of any program may be on."""
    found = [Place("unet", 0, name, base) for name, base in _layers(model.unet)]
    return found + [place for place in places(model, text=True) if place.part == "text"]


def _layers(root: nn.Module) -> Iterator[tuple[str, Base]]:
    for name, module in root.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield name, module


class LoraSet:
    """A LoRA for a model, which `inject` puts on for good.

    seed: of the first random weights. start: layers to start from, by their place's key: they keep their ranks and
    alphas, also where the rest of the arguments would not have them; such text layers stay as they are without `text`.
    """

    def __init__(
        self,
        model: TrainingModel,
        rank: int,
        alpha: float = 0.0,
        convolutions: bool = False,
        text: bool = False,
        seed: int = 0,
        start: Mapping[str, StartLayer] | None = None,
    ) -> None:
        self.rank, self.alpha = rank, float(alpha or rank)
        self.convolutions, self.text = convolutions, text
        self.places = places(model, convolutions=convolutions, text=text)
        start = start or {}
        known = {place.key for place in self.places}
        self.places += [place for place in all_places(model) if place.key in start and place.key not in known]
        generator = torch.Generator().manual_seed(seed)
        self.module = nn.ModuleDict()
        for place in self.places:
            first = start.get(place.key)
            rank_, alpha_ = (rank, self.alpha) if first is None else (first.rank, first.alpha)
            layer = LoraLayer(place.base, rank_, alpha_, generator)
            if first is not None:
                layer.down.data, layer.up.data = first.down.clone(), first.up.clone()
            self.module[place.key] = layer.requires_grad_(place.part == "unet" or text)
        self._off = 0
        self.move()

    def layer(self, place: Place) -> LoraLayer:
        layer = self.module[place.key]
        assert isinstance(layer, LoraLayer)
        return layer

    def move(self) -> None:
        """Brings each LoRA layer to the device of its layer in the model, where that has moved."""
        for place in self.places:
            self.layer(place).to(place.base.weight.device)

    # -- on and off

    def inject(self) -> LoraSet:
        """Puts the LoRA on."""
        self.move()
        for place in self.places:
            place.base.register_forward_hook(partial(self._add, self.layer(place)))
        return self

    def _add(self, layer: LoraLayer, base: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out if self._off else out + layer(inputs[0])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the model is the frozen one. For predictions without gradients: a backward pass that
        computes the forward pass again must run outside."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    # -- the weights

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        """The weights to train: of the "unet", of the "text" encoders, or all."""
        return list(self.named_parameters(part).values())

    def named_parameters(self, part: str | None = None) -> dict[str, nn.Parameter]:
        """The same by name."""
        wanted = [place for place in self.places if part in (None, place.part)]
        return {f"{p.key}.{name}": value for p in wanted for name, value in self.layer(p).named_parameters()}
