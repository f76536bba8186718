"""A sampling around a bare UNet, without any host: for benchmarks and for tests."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import Guide, Hook, Role, Row, RowPlanner, Unsupported


class BareCall:
    """A denoiser call over rows that all go through the UNet in slices of a given size."""

    def __init__(self, rows: tuple[Row, ...], level: float, step: int) -> None:
        self.rows, self.level, self.step = rows, torch.tensor([level]), step
        self.current_rows: tuple[Row, ...] = ()


class BareSampling:
    """Implements `lib_methods.denoiser.Sampling` over a bare UNet; the VAE is a fixed average over squares of 8x8."""

    latent_channels, pixels_per_latent = 4, 8
    batch = (0, 1)
    takes_picture = wants_scaled_picture = False
    picture_scale = 1.0

    def __init__(self, unet: Any, size: tuple[int, int] = (8, 8), steps: int = 10, hires: bool = False) -> None:
        self.unet, self.steps, self.is_hires = unet, steps, hires
        self.latent_size = size
        self.first_latent_size = (size[0] // 2, size[1] // 2) if hires else size
        self.hooks: dict[type, Hook] = {}
        self.guides: dict[type, Guide] = {}
        self.unet_runs: list[int] = []
        self.key = "model"
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        context = int(unet.config.cross_attention_dim)
        self.empty = torch.randn(1, 5, context, generator=torch.Generator().manual_seed(9)).to(parameter)

    def checkpoint_key(self) -> Hashable:
        return self.key

    def model_key(self) -> Hashable:
        return (self.key, "no lora")

    def prepare(self) -> None:
        """Nothing to prepare."""

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        small = nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1).to(self.device, self.dtype)

    def encode_picture(self, images: Tensor) -> Tensor:
        return self.encode(images, [0] * len(images))

    def own_picture(self) -> Tensor | None:
        return None

    def first_pass_picture(self) -> Tensor:
        raise Unsupported("A bare UNet has no first pass.")

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return latents + noise * level.to(latents)

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        self.unet_runs.append(len(noisy))
        self.unet(noisy, level.to(noisy.device).expand(len(noisy)), self.empty.expand(len(noisy), -1, -1))

    def add_hook(self, hook: Hook) -> None:
        self.hooks[type(hook)] = hook

    def add_guide(self, guide: Guide) -> None:
        self.guides[type(guide)] = guide

    def add_planner(self, planner: RowPlanner) -> None:
        raise Unsupported("A bare UNet runs the rows that it is given.")

    @contextmanager
    def hooked(self, call: BareCall) -> Iterator[None]:
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
        call, size = BareCall(rows, level, step), slices or len(rows)
        with torch.no_grad(), self.hooked(call):
            parts = []
            for start in range(0, len(rows), size):
                call.current_rows = rows[start : start + size]
                part = slice(start, start + size)
                parts.append(
                    self.unet(x[part], torch.full((len(x[part]),), level, device=x.device), context[part]).sample
                )
                call.current_rows = ()
            return torch.cat(parts)


def rows_of(conds: int, unconds: int) -> tuple[Row, ...]:
    """`conds` cond rows and then `unconds` uncond rows."""
    return tuple(Row(Role.COND, i) for i in range(conds)) + tuple(Row(Role.UNCOND, i) for i in range(unconds))
