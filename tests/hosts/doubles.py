"""Doubles of AUTOMATIC1111's and Forge's objects, as far as the adapters use them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import Row

SIGMAS = torch.logspace(-1.5, 1.15, 1000)
EMPTY = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(3))


class Model:
    """What both hosts' models have in common; latents are averages over squares of 8x8."""

    is_sdxl = False
    cond_stage_key = "txt"
    alphas_cumprod = 1 / (1 + SIGMAS**2)
    sd_checkpoint_info = SimpleNamespace(sha256="1", filename="m.safetensors", title="m")

    def get_learned_conditioning(self, prompts: Any) -> Tensor:
        assert list(prompts) == [""]
        return EMPTY

    def encode_first_stage(self, pixels: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def get_first_stage_encoding(self, encoded: Tensor) -> Tensor:
        return encoded + 0.01 * torch.randn_like(encoded)  # some autoencoders draw from the global generator


class Denoiser(nn.Module):
    """`CFGDenoiser` as far as the adapter knows it: rows [cond, several per image | uncond], at once or in slices."""

    def __init__(self, p: Any, unet: nn.Module, slices: int | None = None) -> None:
        super().__init__()
        self.p, self.slices = p, slices
        self.steps, self.total_steps, self.step = 10, 20, 0  # a second-order sampler
        self.image_cfg_scale = None
        self.unet = [unet]

    def inner_model(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        (context,) = cond["c_crossattn"]
        extra = cond["c_concat"][0]
        inputs = torch.cat([x, extra], 1) if extra.shape[2:] == x.shape[2:] else x
        return self.unet[0](inputs, sigma, context).sample

    def forward(self, x: Tensor, sigma: Tensor, uncond: Tensor, cond: Any, *args: Any) -> Tensor:
        repeats = [len(parts) for parts in cond.batch]
        rows = torch.cat([x[i : i + 1].expand(n, -1, -1, -1) for i, n in enumerate(repeats)] + [x])
        context = torch.randn(len(rows), 7, 16, generator=torch.Generator().manual_seed(5))
        out = []
        for start in range(0, len(rows), self.slices or len(rows)):
            part = slice(start, start + (self.slices or len(rows)))
            concat = x.new_zeros(len(rows[part]), 5, 1, 1)
            given = {"c_crossattn": [context[part]], "c_concat": [concat]}
            out.append(self.inner_model(rows[part], sigma[:1].expand(len(rows[part])), given))
        self.step += 1
        return torch.cat(out)


def job(unet: nn.Module, **fields: Any) -> Any:
    model = Model()
    model.model = SimpleNamespace(diffusion_model=unet, conditioning_key="crossattn")  # type: ignore[attr-defined]
    p = SimpleNamespace(sd_model=model, width=64, height=64, steps=10, is_hr_pass=False, **fields)
    p.sampler = SimpleNamespace(model_wrap_cfg=Denoiser(p, unet))
    return p


class Recorder:
    """A hook that writes down the rows of each run of the UNet."""

    def __init__(self) -> None:
        self.all: list[tuple[Row, ...]] = []
        self.runs: list[tuple[Row, ...]] = []
        self.steps: list[int] = []

    def around(self, call: Any) -> Any:

        @contextmanager
        def watch():
            self.all.append(call.rows)
            self.steps.append(call.step)
            handle = call_unet.register_forward_hook(lambda *_: None)
            inner = call_unet.conv_in.register_forward_hook(lambda *_: self.runs.append(call.current_rows))
            try:
                yield
            finally:
                handle.remove()
                inner.remove()

        return watch()


call_unet: Any = None


class Launched:
    """A host's sampler, which it may use for several batches."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.model_wrap_cfg = denoiser

    def launch_sampling(self, steps: int, run: Callable[[], Any]) -> Any:
        return run()


class Interrupted(BaseException):
    """How hosts leave a sampler in the middle of it."""


def call(denoiser: Any) -> Tensor:
    x = torch.ones(1, 4, 8, 8)
    return denoiser(x, torch.tensor([1.5]), None, SimpleNamespace(batch=[["a"]]), 5.0, 0.0, None)


class Patcher:
    """A fork's `UnetPatcher` as far as the adapter uses it: all of them carry what is reserved into a clone."""

    def __init__(self, unet: nn.Module, options: dict[str, Any] | None = None, reserved: int = 0) -> None:
        self.model = SimpleNamespace(diffusion_model=unet, predictor=SimpleNamespace(sigmas=SIGMAS))
        self.model_options = options or {}
        self.extra_preserved_memory_during_sampling = reserved

    def clone(self) -> Patcher:
        options, reserved = copy.deepcopy(self.model_options), self.extra_preserved_memory_during_sampling
        return type(self)(self.model.diffusion_model, options, reserved)

    def add_extra_preserved_memory_during_sampling(self, size: int) -> None:
        self.extra_preserved_memory_during_sampling += size


class NeoPatcher(Patcher):
    """Forge Neo's, which copies dicts and lists of its options, but not what is in them."""

    def clone(self) -> Patcher:
        options = {k: v.copy() if isinstance(v, (dict, list)) else v for k, v in self.model_options.items()}
        return type(self)(self.model.diffusion_model, options, self.extra_preserved_memory_during_sampling)
