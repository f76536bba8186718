"""The weights that a run moves, the model's own or a LoRA's; their average, and the embeddings of texts beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib_methods.device import CPU, release_memory
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import Parts, TextEmbedding, TrainingModel, device_of
from lib_methods.dreambooth.training.processes import gathered, joined, local, sharded_like
from lib_methods.errors import UserError


class Trained:
    """The weights by part ("unet", "text") and name, in an order that is the same each time.

    Turns gradients on for these and off for the rest of the model.
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
        return list(self.named().values())

    def follow(self) -> None:
        """Brings a LoRA's layers to where the model's have been moved."""
        if self.lora is not None:
            self.lora.move()

    @contextmanager
    def frozen_model(self) -> Iterator[None]:
        """Within the block the model is what it was before the training; for a LoRA only."""
        if self.lora is None:
            raise UserError("Only a LoRA can be taken off while it is trained.")
        with self.lora.disabled():
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """The weights themselves, not copies; of sharded ones see `processes.gathered`."""
        return {name: gathered(value) for name, value in self.named().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of `state_dict`. Raises UserError, changing nothing, when they are of another model
        or of other settings."""
        own = self.named()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise UserError("The saved weights belong to another model or to other settings.")
        for name, value in own.items():
            local(value).copy_(local(sharded_like(value, state[name])))

    def healthy(self) -> bool:
        """Whether every weight, or of sharded ones every weight of this process' part, is a finite number."""
        return all(bool(torch.isfinite(local(value.detach())).all()) for value in self.parameters())


class Ema:
    """Exponential moving average: average = d * average + (1 - d) * weights.

    d rises with the number n of updates, min(decay, (1 + n) / (10 + n)), so that a short training is not mostly its
    beginning. Of sharded weights each process averages its own part; `state_dict` and `load_state_dict`, which
    have all of them, are collective then.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError("decay must be in [0, 1)")
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.averages = [local(p.detach()).to("cpu", torch.float32, copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step into account."""
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
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

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under their numbers, and the number of steps; of sharded weights see `processes.gathered`."""
        state = {"steps": torch.tensor(self.steps)}
        for number, (average, parameter) in enumerate(zip(self.averages, self.parameters)):
            state[str(number)] = gathered(joined(average, parameter.detach())).to("cpu", copy=True)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave. Raises `UserError` where it is of other weights."""
        wanted = {str(number): parameter.shape for number, parameter in enumerate(self.parameters)}
        if {name: value.shape for name, value in state.items() if name != "steps"} != wanted or "steps" not in state:
            raise UserError("The saved averages belong to other weights: this run cannot be resumed.")
        for number, (average, parameter) in enumerate(zip(self.averages, self.parameters)):
            average.copy_(local(sharded_like(parameter, state[str(number)])))
        self.steps = int(state["steps"])

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values):
            local(parameter).copy_(value)


class TextCache:
    """The embeddings of a fixed set of texts, kept on the CPU.

    All are computed in one call, so that they have the same number of chunks and a resumed run has the very
    same numbers.
    """

    def __init__(self, model: TrainingModel, texts: Sequence[str]) -> None:
        self._rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        with torch.no_grad():
            self._embedding = model.embed(list(self._rows)).to(CPU, torch.float32)

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        """The embeddings of `texts`, (B, T, D), in their order. KeyError for a text that is not in the set."""
        return self._embedding[torch.tensor([self._rows[text] for text in texts])]


class TextSource:
    """The embeddings of a run's texts at each of its steps, on the UNet's device.

    learns_until: the step from which the text encoders stand still: then all texts are embedded once, and unless it
    `stays` there, the text encoder leaves the device. one_at_a_time: the UNet leaves it while that is done.
    """

    def __init__(
        self,
        model: TrainingModel,
        texts: Sequence[str],
        trained: Trained,
        *,
        learns_until: int,
        stays: bool,
        one_at_a_time: bool = False,
    ) -> None:
        self.model, self.trained, self.learns_until, self.stays = model, trained, learns_until, stays
        self._parts = Parts(model, one_at_a_time=one_at_a_time, follow=trained.follow)
        self._all = list(texts)
        self._still: TextCache | None = None
        self._frozen: TextCache | None = None

    def embed(self, texts: Sequence[str], step: int) -> TextEmbedding:
        """The embeddings as the model reads the texts at a step; with gradients as long as the encoders learn."""
        device = device_of(self.model.unet)
        if step < self.learns_until:
            self._move(device)
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            embedding = self.model.embed(list(rows))
            return embedding[torch.tensor([rows[text] for text in texts], device=embedding.hidden.device)]
        if self._still is None:
            for parameter in self.trained.parts.get("text", {}).values():
                parameter.requires_grad_(False)
                parameter.grad = None
            with self._parts.embedding():
                self._still = TextCache(self.model, self._all)
            if not self.stays:
                self._move(CPU)
                release_memory(device)
        return self._still(texts).to(device, torch.float32)

    def frozen(self, texts: Sequence[str]) -> TextEmbedding:
        """The embeddings as the model without the LoRA reads the texts."""
        if self._frozen is None:
            with self._parts.embedding(), self.trained.frozen_model():
                self._frozen = TextCache(self.model, self._all)
        return self._frozen(texts).to(device_of(self.model.unet), torch.float32)

    def _move(self, device: torch.device) -> None:
        for encoder in self.model.encoders:
            encoder.to(device)
        self.trained.follow()
