"""A sampling around a bare UNet, without any host: for measurements and for tests."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import differentiable, without_overrides
from lib_methods.denoiser import (
    Conditioning,
    DenoiserCall,
    Editor,
    Guide,
    Hook,
    Part,
    Position,
    Role,
    Row,
    Unsupported,
)
from lib_methods.denoiser.levels import Levels

_LAST = 0.03  # the smallest noise that the model is asked about, as of Stable Diffusion's schedule


class BareCall:
    """A denoiser call over rows that all go through the UNet in slices of a given size."""

    def __init__(self, rows: tuple[Row, ...], level: float, step: int) -> None:
        self.rows, self.level, self.step = rows, torch.tensor([level]), step
        self.current_rows: tuple[Row, ...] = ()


class BareSampling:
    """Implements `lib_methods.denoiser.Sampling` and `Editing` over a bare UNet.

    The VAE is a fixed average over squares of 8x8, a text is embedded as noise, the schedule is Stable
    Diffusion's. `draw` samples by Euler's method; `denoise` is one call in the UNet's own scale.
    """

    batch = (0, 1)
    picture = None

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
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.levels = Levels((1 - betas).cumprod(0))
        high = math.log(self.levels.sigma(self.levels.last))
        self.sigmas = torch.cat([torch.linspace(high, math.log(_LAST), steps).exp(), torch.zeros(1)])
        self.is_stochastic = self.needs_noise = False
        self.own_noise = None
        self.editors: dict[type, Editor] = {}
        self.own: Tensor | None = None
        noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(8)).to(self.device)
        self.start = noise * self.sigmas[0].to(self.device)

    @property
    def editing(self) -> BareSampling:
        """Itself."""
        return self

    def without_noise(self) -> None:
        """There is none."""

    def draw_noise(self) -> Tensor:
        raise Unsupported("A bare UNet has no noise.")

    def give_noise(self, noise: Callable[[], Tensor]) -> None:
        raise Unsupported("A bare UNet takes no noise.")

    def checkpoint_key(self) -> Hashable:
        return self.key

    def model_key(self) -> Hashable:
        return (self.key, "no lora")

    def prepare(self) -> None:
        """Nothing to prepare."""

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        small = nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1).to(self.device, self.dtype)

    def own_frame(self) -> tuple[str, tuple[float, float, float, float]]:
        return "crop", (0.0, 0.0, 1.0, 1.0)

    def sigma(self, level: Tensor) -> float:
        return float(level.item())

    def level(self, sigma: float) -> Tensor:
        return torch.tensor([self.levels.nearest(sigma)])

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return latents + noise * level.to(latents)

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        self.unet_runs.append(len(noisy))
        self.unet(noisy, level.to(noisy.device).expand(len(noisy)), self.empty.expand(len(noisy), -1, -1))

    def add_hook(self, hook: Hook) -> None:
        self.hooks[type(hook)] = hook

    def add_guide(self, guide: Guide) -> None:
        self.guides[type(guide)] = guide

    def registering(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reserve(self, size: int) -> None:
        """Nothing to tell: memory is taken as it is needed."""

    def failure(self, part: Part) -> str:
        return ""

    def own_latent(self) -> Tensor | None:
        return self.own

    def start_latent(self) -> Tensor:
        return self.start.clone()

    def start_from(self, latents: Tensor) -> None:
        self.start = latents.clone()

    def at_end(self, latents: Tensor) -> Tensor:
        return latents

    def own_image(self) -> Tensor | None:
        return None

    def embed(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        tokens, width = 77, self.empty.shape[2]
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = [torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return Conditioning(torch.stack(rows).to(self.device, self.dtype))

    def tokenize(self, text: str) -> list[int]:
        return [zlib.crc32(word.encode()) % 1000 for word in text.split()]

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents[:, :3].float(), scale_factor=8.0).clamp(-1, 1)

    def predict(self, x: Tensor, sigma: float, cond: Conditioning, gradients: bool = False) -> Tensor:
        context = cond.context.expand(len(x), -1, -1)
        with self.differentiable() if gradients else torch.no_grad(), without_overrides(self.unet):
            return self._denoised(x, sigma, context)

    def _denoised(self, x: Tensor, sigma: float, context: Tensor) -> Tensor:
        timestep = torch.full((len(x),), self.levels.timestep(sigma), device=x.device)
        return x - sigma * self.unet(x * (1 + sigma**2) ** -0.5, timestep, context).sample

    def differentiable(self) -> AbstractContextManager[None]:
        return differentiable(self.unet)

    def position(self, call: DenoiserCall) -> Position:
        return Position(call.step, float(call.level), True)

    def add_editor(self, editor: Editor) -> None:
        self.editors[type(editor)] = editor

    def draw(self, cond: Conditioning, uncond: Conditioning | None = None, scale: float = 1.0) -> Tensor:
        """Latents by Euler's method from `start`: one denoiser call a step, rows [cond | uncond], editors and hooks.

        Guides are not asked. Raises what an editor or a hook raises.
        """
        x = self.start.clone()
        context = cond.context.expand(len(x), -1, -1)
        rows = rows_of(len(x), 0 if uncond is None else len(x))
        if uncond is not None:
            context = torch.cat([context, uncond.context.expand(len(x), -1, -1)])
        levels = [float(sigma) for sigma in self.sigmas]
        for step, (sigma, following) in enumerate(zip(levels, levels[1:])):
            call = BareCall(rows, sigma, step)
            for editor in self.editors.values():
                x = editor.before(call, x)
            with torch.no_grad(), self.hooked(call):
                call.current_rows = rows
                found = self._denoised(x if uncond is None else torch.cat([x, x]), sigma, context)
                call.current_rows = ()
            if uncond is not None:
                with_prompt, without = found.chunk(2)
                found = without + scale * (with_prompt - without)
            x = x + (x - found) * ((following - sigma) / sigma)
        return x

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
