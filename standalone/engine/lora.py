"""Adds LoRAs to a model's weights and takes them off again, to the last bit.

W + strength * alpha / rank * up @ down (Hu et al. 2021, equation 3), in single precision, rounded once to the weight's
own. The original of every weight that is changed is kept on the CPU and copied back, since subtracting what was added
would leave rounding behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .errors import UserError
from .lora_file import DoesNotFit, LoraLayer, LoraOnDisk, read_layers
from .lora_names import layers_by_name
from .model import StableDiffusionModel

_STATE = "_loras"


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA with its strengths in text encoders and UNet. The names of the fields are those of the WebUI's own."""

    network_on_disk: LoraOnDisk
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0
    dyn_dim: int | None = None
    mentioned_name: str = ""

    @property
    def name(self) -> str:
        return self.network_on_disk.name

    @property
    def mtime(self) -> float:
        return self.network_on_disk.mtime


@dataclass
class _Merged:
    """What is added to a model: what was asked for, what to tell the user about it, the weights without it."""

    asked: tuple[LoadedLora, ...] = ()
    problems: list[str] = field(default_factory=list)
    originals: list[tuple[nn.Module, Tensor]] = field(default_factory=list)


@dataclass
class _Use:
    """One LoRA while it is added: how many of its layers there are, and how many the model could take."""

    lora: LoadedLora
    layers: dict[str, LoraLayer | None]
    fitting: int = 0

    def problem(self) -> str | None:
        """A sentence when not all layers fit."""
        name, total = self.lora.name, len(self.layers)
        if not any(self.layers.values()):
            return f"LoRA {name} was left out: it is of a kind that this host cannot apply (such as LoHa, LoKr, DoRA)."
        if not self.fitting:
            return f"LoRA {name} was left out: it fits no layer of this model; it was made for another kind of model."
        if self.fitting < total:
            return f"LoRA {name}: {total - self.fitting} of its {total} layers do not fit this model and were left out."
        return None


_Share = tuple[_Use, LoraLayer, float]


def loaded_loras(model: StableDiffusionModel) -> tuple[LoadedLora, ...]:
    """The LoRAs whose weights are in `model` now, in the order in which they were added."""
    return model.loaded_networks


def apply_loras(model: StableDiffusionModel, loras: Sequence[LoadedLora]) -> list[str]:
    """Makes `model` the checkpoint with exactly these LoRAs added; with none, the checkpoint itself.

    A file that cannot be used, or that fits no layer, is left out. Returns a sentence for each such file and for each
    of which only some layers fit. After an exception the model is the bare checkpoint.
    """
    state = _state(model)
    if state.asked == tuple(loras):
        return state.problems
    _take_off(model)
    state = model.__dict__[_STATE] = _Merged(asked=tuple(loras))
    try:
        with torch.no_grad():
            model.loaded_networks = _merge(model, state)
    except BaseException:
        _take_off(model)
        raise
    return state.problems


@contextmanager
def loras_restored(model: StableDiffusionModel) -> Iterator[None]:
    """Within the block LoRAs may come and go; afterwards `model` has those that it had before."""
    before = _state(model).asked
    try:
        yield
    finally:
        apply_loras(model, before)


def _state(model: StableDiffusionModel) -> _Merged:
    state: _Merged = model.__dict__.get(_STATE) or _Merged()
    return state


def _take_off(model: StableDiffusionModel) -> None:
    with torch.no_grad():
        for module, original in _state(model).originals:
            module.get_parameter("weight").copy_(original)
    model.__dict__.pop(_STATE, None)
    model.loaded_networks = ()


def _merge(model: StableDiffusionModel, state: _Merged) -> tuple[LoadedLora, ...]:
    """Adds `state.asked`; the LoRAs of which something fits."""
    known = layers_by_name(model) if state.asked else {}
    uses: list[_Use] = []
    shares: dict[nn.Linear | nn.Conv2d, list[_Share]] = {}
    for lora in state.asked:
        try:
            use = _Use(lora, read_layers(lora.network_on_disk))
        except UserError as error:
            state.problems.append(f"LoRA {lora.name} was left out: {error}")
            continue
        uses.append(use)
        for name, layer in use.layers.items():
            strength = lora.unet_multiplier if name.startswith("lora_unet_") else lora.te_multiplier
            if layer is not None and name in known:
                shares.setdefault(known[name], []).append((use, layer, strength))
    for module, parts in shares.items():
        merged = _merged_weight(module.weight, parts)
        if merged is not None:
            state.originals.append((module, module.weight.to("cpu", copy=True)))
            module.weight.copy_(merged)
    state.problems += [problem for use in uses if (problem := use.problem())]
    return tuple(use.lora for use in uses if use.fitting)


def _merged_weight(weight: Tensor, parts: Sequence[_Share]) -> Tensor | None:
    """`weight` with all parts that fit added, in single precision; None if that changes nothing."""
    merged: Tensor | None = None
    for use, layer, strength in parts:
        try:
            change = layer.change(weight.shape, weight.device, use.lora.dyn_dim)
        except DoesNotFit:
            continue
        use.fitting += 1
        if strength:
            merged = (weight.float() if merged is None else merged) + change * strength
    return merged
