"""The weights that a training moves: the model's own, or those of a LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import DreamBoothError
from .lora import LoraSet
from .model import TrainingModel
from .sharding import local, sharded_like


class Trained:
    """The weights by part ("unet", "text") and name, in an order that is the same each time.

    Turns gradients on for these and off for the rest of the model; `release` turns them off again.
    """

    def __init__(self, model: TrainingModel, lora: LoraSet | None, *, text: bool) -> None:
        """lora: injected, None to train the model's own weights. text: the text encoders learn, too."""
        self.model, self.lora = model, lora
        for module in (model.unet, model.vae, *model.encoders):
            module.requires_grad_(False)
        self.parts: dict[str, dict[str, nn.Parameter]] = {"unet": self._named("unet")}
        if text:
            self.parts["text"] = self._named("text")
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def _named(self, part: str) -> dict[str, nn.Parameter]:
        if self.lora is not None:
            return dict(self.lora.named_parameters(part))
        if part == "unet":
            return {f"unet.{name}": value for name, value in self.model.unet.named_parameters()}
        encoders = enumerate(self.model.encoders)
        return {f"text{n}.{name}": value for n, encoder in encoders for name, value in encoder.named_parameters()}

    def named(self) -> dict[str, nn.Parameter]:
        return {name: value for part in self.parts.values() for name, value in part.items()}

    def parameters(self) -> list[nn.Parameter]:
        return [value for part in self.parts.values() for value in part.values()]

    def freeze_text(self) -> None:
        """From here on the text encoders stay as they are."""
        for parameter in self.parts.get("text", {}).values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def release(self) -> None:
        """Turns gradients off everywhere."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    def follow(self) -> None:
        """Brings a LoRA's layers to where the model's have been moved."""
        if self.lora is not None:
            self.lora.move()

    @contextmanager
    def frozen_model(self) -> Iterator[None]:
        """Within the block the model is what it was before the training; for a LoRA only."""
        if self.lora is None:
            raise DreamBoothError("Only a LoRA can be taken off while it is trained.")
        with self.lora.disabled():
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """The weights themselves, not copies; sharded ones as they are."""
        return {name: value.detach() for name, value in self.named().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of `state_dict`. Raises DreamBoothError, changing nothing, when they are of another model
        or of other settings."""
        own = self.named()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise DreamBoothError("The saved weights belong to another model or to other settings.")
        for name, value in own.items():
            local(value).copy_(local(sharded_like(value, state[name])))

    def healthy(self) -> bool:
        """Whether every weight, or of sharded ones every weight of this process' part, is a finite number."""
        return all(bool(torch.isfinite(local(value.detach())).all()) for value in self.parameters())
