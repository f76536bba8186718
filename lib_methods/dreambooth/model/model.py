"""What the trainer wants of a model: the seam to whoever loads checkpoints, and its parts on the device in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lib_methods.device import CPU, release_memory
from lib_methods.errors import UserError


@dataclass(frozen=True)
class TextEmbedding:
    """What the UNet is told about a text. hidden: (B, T, D). pooled: (B, P) for SDXL, else None."""

    hidden: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> TextEmbedding:
        return TextEmbedding(self.hidden[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, device: torch.device, dtype: torch.dtype) -> TextEmbedding:
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return TextEmbedding(self.hidden.to(device, dtype), pooled)

    @staticmethod
    def cat(parts: Sequence[TextEmbedding]) -> TextEmbedding:
        """The embeddings one after another; all have the same number of tokens."""
        pooled = [p.pooled for p in parts if p.pooled is not None]
        return TextEmbedding(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


class TrainingModel(Protocol):
    """A checkpoint of Stable Diffusion that can be trained and written back.

    family: "sd1", "sd2" or "sdxl". parameterization: "eps" or "v". alphas_cumprod: (1000,), fp32. resolution: the side
    in pixels that the model was trained for. Latents are scaled as the UNet wants them (unit variance); of a pixel
    cascade's stage (family "if") they are the images themselves. limit: of a pixel model, brings predicted images into
    their range. rare_from: token ids from here on are rare words.
    """

    name: str
    sha256: str
    family: str
    parameterization: str
    zero_terminal_snr: bool
    resolution: int
    pixels_per_latent: int
    latent_channels: int
    rare_from: int

    @property
    def limit(self) -> Callable[[Tensor], Tensor] | None: ...

    @property
    def alphas_cumprod(self) -> Tensor: ...

    @property
    def unet(self) -> nn.Module: ...

    @property
    def vae(self) -> nn.Module: ...

    @property
    def encoders(self) -> Sequence[nn.Module]:
        """The text encoders: one, for SDXL two."""

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text without start, end and padding."""

    def token_words(self) -> Mapping[str, int]:
        """The tokenizer's vocabulary: spelling (`cat</w>`) to id."""

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        """Plain text, no emphasis syntax. Gradients flow into the encoders where grad mode and their weights ask."""

    def predict(self, latents: Tensor, timesteps: Tensor, text: TextEmbedding, sizes: Tensor | None = None) -> Tensor:
        """The UNet's output, eps or v, (B, C, h, w), for noisy latents in alpha space at integer timesteps (B,).

        A variance may stand behind it, (B, 2C, h, w).

        sizes: (B, 6), SDXL's original height and width, crop top and left, target height and width; None: the image's
        own size, uncropped.
        """

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of the latents of images (B, 3, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of latents."""

    def unet_names(self) -> Mapping[str, str]:
        """The name in the file (LDM's) of each of the UNet's weights, by the module's own."""

    def file_weights(self) -> dict[str, Tensor]:
        """The weights of UNet and text encoders as they are now, in the names and shapes of the source file.

        Names are LDM's, also where the source is a diffusers folder.
        """

    def source_weights(self, source: Path) -> Mapping[str, Tensor]:
        """All weights of the diffusers folder that the model was loaded from, as they are there, in LDM's names."""


def check_weights(model: TrainingModel) -> None:
    """Raises UserError where weights of the model are not finite: nothing that is trained on it would be."""
    parts = [("UNet", model.unet), ("VAE", model.vae), *(("text encoder", encoder) for encoder in model.encoders)]
    for what, part in parts:
        bad = [name for name, weight in part.named_parameters() if not bool(torch.isfinite(weight).all())]
        if bad:
            raise UserError(
                f"The base model {model.name} is damaged: {len(bad)} tensors of its {what} hold NaN or infinite "
                f"weights (the first is {bad[0]}). Download it again, or choose another base model."
            )


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first weight."""
    return next(module.parameters()).device


@contextmanager
def brought(device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Within the block the modules are on `device`; after it where each was before, even if one never got there."""
    homes = [device_of(module) for module in modules]
    with ExitStack() as stack:
        stack.callback(_release, device, homes)
        for module, home in zip(modules, homes):
            stack.callback(module.to, home)  # before it moves: memory may end in the middle of a module
            module.to(device)
        _release(device, homes)
        yield


class Parts:
    """Brings a model's parts to the UNet's device when they are needed: beside the UNet, or one part at a time.

    One at a time the others are on the CPU meanwhile, the UNet too, which takes seconds there and back for SDXL's 4.8
    GiB. Numbers do not depend on it: everything is computed on the device. After each block all parts are where they
    were before it, also after an exception.

    dtype: what is computed in, None for the weights' own precision. follow: called when parts have moved, for a LoRA
    that must come along. movable: False where the UNet cannot leave, as its weights are spread over several devices;
    then it is never one at a time.
    """

    def __init__(
        self,
        model: TrainingModel,
        *,
        one_at_a_time: bool = False,
        dtype: torch.dtype | None = None,
        follow: Callable[[], object] | None = None,
        movable: bool = True,
    ) -> None:
        self.model, self.dtype, self.follow, self.movable = model, dtype, follow or (lambda: None), movable
        self.one_at_a_time = one_at_a_time and movable
        self.device = device_of(model.unet)

    @contextmanager
    def only(self, *modules: nn.Module) -> Iterator[None]:
        """Within the block these of the model's parts are on the device, one at a time nothing else is."""
        unet = self.model.unet
        here, away = [module for module in modules if module is not unet], []
        if self.one_at_a_time:
            here = list(modules)
            away = [part for part in (unet, self.model.vae, *self.model.encoders) if part not in here]
        with ExitStack() as stack:
            stack.callback(self.follow)
            stack.enter_context(brought(CPU, *away))
            stack.enter_context(brought(self.device, *here))
            self.follow()
            yield

    def embedding(self) -> AbstractContextManager[None]:
        """Within the block texts can be embedded."""
        return self._at_work(*self.model.encoders)

    def denoising(self) -> AbstractContextManager[None]:
        """Within the block the UNet can be asked."""
        return self._at_work(self.model.unet)

    def decoding(self) -> AbstractContextManager[None]:
        """Within the block latents can be decoded."""
        return self._at_work(self.model.vae)

    @contextmanager
    def _at_work(self, *modules: nn.Module) -> Iterator[None]:
        with self.only(*modules), computing(self.device, self.dtype):
            yield

    def spare(self) -> bool:
        """One part at a time from here on, for memory was short; False where that is so already or cannot help."""
        if self.one_at_a_time or not self.movable or self.device == CPU:
            return False
        self.one_at_a_time = True
        return True


def computing(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Within the block the layers compute in `dtype` whatever their weights are; None: in the weights' own."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _release(device: torch.device, homes: Sequence[torch.device]) -> None:
    """Gives back what modules have left on `device` and on their other places."""
    for place in {device, *homes} if any(home != device for home in homes) else ():
        release_memory(place)


def wait_for(out: torch.Tensor) -> None:
    """Until `out` is computed: a GPU is asked for one of its numbers."""
    out.flatten()[:1].tolist()
