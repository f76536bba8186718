"""What the trainer wants of a model: the seam between the method and whoever loads checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lib_methods.dreambooth.errors import DreamBoothError


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
        """The embeddings one after another. The shorter ones are padded with zeros at the end.

        Callers embed all texts of a training with the same number of chunks, so that nothing is padded.
        """
        longest = max(part.hidden.shape[1] for part in parts)
        hidden = [nn.functional.pad(p.hidden, (0, 0, 0, longest - p.hidden.shape[1])) for p in parts]
        pooled = [p.pooled for p in parts if p.pooled is not None]
        return TextEmbedding(torch.cat(hidden), torch.cat(pooled) if pooled else None)


class TrainingModel(Protocol):
    """A checkpoint of Stable Diffusion that can be trained and written back.

    family: "sd1", "sd2" or "sdxl". parameterization: "eps" or "v". alphas_cumprod: (1000,), fp32. resolution: the side
    in pixels that the model was trained for. Latents are scaled as the UNet wants them (unit variance).
    """

    name: str
    sha256: str
    family: str
    parameterization: str
    zero_terminal_snr: bool
    resolution: int
    pixels_per_latent: int
    latent_channels: int

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

        sizes: (B, 6), SDXL's original height and width, crop top and left, target height and width; None: the picture's
        own size, uncropped.
        """

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of the latents of pictures (B, 3, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of latents."""

    def unet_names(self) -> Mapping[str, str]:
        """The name in the file (LDM's) of each of the UNet's weights, by the module's own."""

    def file_weights(self) -> dict[str, Tensor]:
        """The weights of UNet and text encoders as they are now, in the names and shapes of the source file.

        Names are LDM's, also where the source is a diffusers folder.
        """

    def source_weights(self, source: Path) -> Mapping[str, Tensor]:
        """All weights of the diffusers folder that the model was loaded from, as they are there, in LDM's names."""


def check_weights(model: TrainingModel) -> None:
    """Raises DreamBoothError where weights of the model are not finite: nothing that is trained on it would be."""
    parts = [("UNet", model.unet), ("VAE", model.vae), *(("text encoder", encoder) for encoder in model.encoders)]
    for what, part in parts:
        bad = [name for name, weight in part.named_parameters() if not bool(torch.isfinite(weight).all())]
        if bad:
            raise DreamBoothError(
                f"The base model {model.name} is damaged: {len(bad)} tensors of its {what} hold NaN or infinite "
                f"weights (the first is {bad[0]}). Download it again, or choose another base model."
            )
