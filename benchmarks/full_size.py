"""What full-size benches share: the UNet, peak memory, a host's runs of the UNet, and where it was measured."""

from __future__ import annotations

import gc
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

STATM = Path("/proc/self/statm")


def sd15_unet(device: torch.device, dtype: torch.dtype, context: int = 768, channels: int = 4) -> UNet2DConditionModel:
    """SD1.5's UNet, 860 million parameters, with random weights.

    context: the width of the text encoder. channels: of the input, 8 for InstructPix2Pix.
    """
    with torch.device(device):
        return UNet2DConditionModel(
            sample_size=64,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=context,
            attention_head_dim=8,
        ).to(dtype)


def put_full_size(model: Any, channels: int = 4) -> None:
    """Put a UNet of SD1.5's size with random weights into a host's loaded model, whose text encoder and VAE stay."""
    like = model.model.diffusion_model
    torch.manual_seed(0)
    unet = sd15_unet(like.device, like.dtype, int(like.config.cross_attention_dim), channels)
    model.model.diffusion_model = unet.requires_grad_(False).eval()


@contextmanager
def watching(begin: Callable[[nn.Module, Any], None], end: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within the block, `begin(module, inputs)` and `end(module)` are called around every run of any module, `forward`
    replaced on the instance or not."""
    handles = [
        register_module_forward_pre_hook(begin),
        register_module_forward_hook(lambda module, inputs, output: end(module)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def settle() -> None:
    """Wait until the GPU is done, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment(dtype: torch.dtype) -> dict[str, Any]:
    """Where and with what it was measured, for a report's settings."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype),
        "torch": torch.__version__,
    }


class PeakMemory:
    """The most memory held within a block, in bytes: torch's count on CUDA, the process's resident size on Linux."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif STATM.exists():
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated()
        elif self._watcher.is_alive():
            self._done.set()
            self._watcher.join()

    def _watch(self) -> None:
        peak = 0
        while not self._done.wait(0.005):
            peak = max(peak, int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        self.peak = peak
