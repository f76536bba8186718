"""A small UNet and a sampling around it, so that FABRIC can be looked at without any host."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from lib_methods.denoiser import Hook, Role, Row


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels of 32 and 64 channels with random weights."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()


class FakeCall:
    """A denoiser call over rows that all go through the UNet in slices of a given size."""

    def __init__(self, rows: tuple[Row, ...], level: float, step: int) -> None:
        self.rows, self.level, self.step = rows, torch.tensor([level]), step
        self.current_rows: tuple[Row, ...] = ()


class FakeSampling:
    """Implements `lib_methods.denoiser.Sampling` over a bare UNet; the VAE is a fixed average over squares of 8x8."""

    latent_channels, pixels_per_latent = 4, 8

    def __init__(self, unet: nn.Module, size: tuple[int, int] = (8, 8), steps: int = 10, hires: bool = False) -> None:
        self.unet, self.steps, self.is_hires = unet, steps, hires
        self.latent_size = size
        self.first_latent_size = (size[0] // 2, size[1] // 2) if hires else size
        self.device = torch.device("cpu")
        self.hooks: dict[type, Hook] = {}
        self.unet_runs: list[int] = []
        self.key = "model"
        self.empty = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(9))

    def checkpoint_key(self) -> Hashable:
        return self.key

    def model_key(self) -> Hashable:
        return (self.key, "no lora")

    def prepare(self) -> None:
        """Nothing to prepare."""

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        small = nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return latents + noise * level.to(latents)

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        self.unet_runs.append(len(noisy))
        self.unet(noisy, level.expand(len(noisy)), self.empty.expand(len(noisy), -1, -1))

    def add_hook(self, hook: Hook) -> None:
        self.hooks[type(hook)] = hook

    @contextmanager
    def hooked(self, call: FakeCall) -> Iterator[None]:
        with ExitStack() as stack:
            for hook in self.hooks.values():
                stack.enter_context(hook.around(call))
            yield

    def denoise(
        self,
        x: Tensor,
        context: Tensor,
        rows: tuple[Row, ...],
        level: float = 1.5,
        step: int = 0,
        slices: int | None = None,
    ) -> Tensor:
        """One denoiser call: rows (R, 4, h, w) through the UNet, `slices` rows at a time."""
        call, size = FakeCall(rows, level, step), slices or len(rows)
        with torch.no_grad(), self.hooked(call):
            parts = []
            for start in range(0, len(rows), size):
                call.current_rows = rows[start : start + size]
                part = slice(start, start + size)
                parts.append(self.unet(x[part], torch.full((len(x[part]),), level), context[part]).sample)
                call.current_rows = ()
            return torch.cat(parts)


def rows_of(conds: int, unconds: int) -> tuple[Row, ...]:
    """`conds` cond rows and then `unconds` uncond rows."""
    return tuple(Row(Role.COND, i) for i in range(conds)) + tuple(Row(Role.UNCOND, i) for i in range(unconds))


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A picture of random colour patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)


class Album:
    """Pictures by hash, as the store gives them."""

    def __init__(self) -> None:
        self.pictures: dict[str, Image.Image] = {}

    def add(self, image: Image.Image) -> str:
        name = hashlib.sha256(image.tobytes()).hexdigest()
        self.pictures[name] = image
        return name

    def load(self, name: str) -> Image.Image:
        return self.pictures[name]
