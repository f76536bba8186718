"""What benches share: a UNet of full size, seconds and peak memory, runs of the UNet, and figures over rounds."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from benchmarks.harness.report import line_of, write_json
from standalone import ROOT

STATM = Path("/proc/self/statm")


UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (1, 2, 4, 4),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": {
        "block_out_channels": (1, 2, 4),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
    },
}
"""UNets as published, but for SDXL's embedding of sizes and pooled text, which costs next to nothing."""
PIXELS = {"sd15": 512, "sdxl": 1024}


def full_unet(
    device: torch.device, dtype: torch.dtype, size: str = "sd15", width: int = 320, **more: Any
) -> UNet2DConditionModel:
    """A UNet of `UNETS` with random weights, 860 or 2560 million. width: of the first layers. more: of its settings."""
    settings = {"sample_size": 64, "layers_per_block": 2, **UNETS[size], **more}
    settings["block_out_channels"] = tuple(width * times for times in UNETS[size]["block_out_channels"])
    with torch.device(device):
        return UNet2DConditionModel(**settings).to(dtype)


def put_full_size(model: Any, size: str = "sd15", channels: int = 4) -> None:
    """Put a UNet of full size with random weights into a host's loaded model, whose text encoder and VAE stay.

    channels: of the input, 8 for InstructPix2Pix.
    """
    print(f"Building a UNet of {size}'s size with random weights ...", flush=True)
    like = model.model.diffusion_model
    context = int(like.config.cross_attention_dim)
    torch.manual_seed(0)
    unet = full_unet(like.device, like.dtype, size, cross_attention_dim=context, in_channels=channels)
    model.model.diffusion_model = unet.requires_grad_(False).eval()


class Watch:
    """The UNet's runs of a job, and the seconds from the first of them, or of the host's denoiser, to its last call's
    end.

    inversion: rows before the sampler starts. sampling: rows after that. backwards: those of them that gradients are
    taken through.
    """

    def __init__(self) -> None:
        self.inversion = self.sampling = self.backwards = 0
        self.seconds = 0.0
        self._started: float | None = None
        self._is_sampling = False

    def __enter__(self) -> Watch:
        # of any module: a method may have replaced `forward` on the UNet's instance
        self._hooks = [register_module_forward_pre_hook(self._begin), register_module_forward_hook(self._end)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        from modules.sd_samplers_cfg_denoiser import CFGDenoiser

        if not isinstance(module, CFGDenoiser | UNet2DConditionModel):
            return
        if self._started is None:
            settle()
            self._started = time.perf_counter()
        if isinstance(module, CFGDenoiser):
            self._is_sampling = True
        elif not self._is_sampling:
            self.inversion += len(inputs[0])
        else:
            self.sampling += len(inputs[0])
            self.backwards += len(inputs[0]) if torch.is_grad_enabled() else 0

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        from modules.sd_samplers_cfg_denoiser import CFGDenoiser

        if isinstance(module, CFGDenoiser) and self._started is not None:
            settle()
            self.seconds = time.perf_counter() - self._started


def settle() -> None:
    """Wait until the GPU is done, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment(dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """Where and with what it was measured, for a report's settings."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype),
        "torch": torch.__version__,
        **more,
    }


class Rounds:
    """The figures of a bench. bench.json is written after each round, so that a long run can be stopped.

    once: figures that are measured once. rounds: those of every round, whose median counts.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.once: dict[str, float] = {}
        self.rounds: dict[str, list[float]] = {}

    def add(self, label: str, figures: dict[str, float], settings: dict[str, Any]) -> None:
        """Say and write the figures of one round. settings: see `environment`."""
        print(f"  {label}: {line_of(figures)}", flush=True)
        for name, value in figures.items():
            self.rounds.setdefault(name, []).append(value)
        medians = {name: statistics.median(values) for name, values in self.rounds.items()}
        rounds = {name: len(values) for name, values in self.rounds.items()}
        write_json(self.out / "bench.json", {**self.once, **medians}, {**settings, "rounds": rounds})


def apart(module: str, options: Sequence[str], report: Path, variables: Mapping[str, str] | None = None) -> Any | None:
    """Runs a program in a separate process and reads the JSON that it writes to its last option; None if it failed.
    variables: of the environment, where they are not set."""
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, *options, str(report)]
    done = subprocess.run(command, cwd=ROOT, env={**(variables or {}), **os.environ}, check=False)
    if done.returncode != 0 or not report.exists():
        return None
    found = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    return found


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
