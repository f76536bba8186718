"""Which build of PyTorch to install: the CUDA build where there is an NVIDIA GPU, else the small one for the CPU."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from .pip_runner import PipRunner

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is at work on this machine."""
    if sys.platform == "darwin":
        return False
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def brings_cuda(offer: dict[str, Any]) -> bool:
    """Whether this offer of torch pulls in CUDA's libraries."""
    if "+cpu" in str(offer.get("version", "")):
        return False
    return any(str(line).startswith(("nvidia-", "cuda-")) for line in offer.get("requires_dist") or [])


def install_torch(pip: PipRunner, requirement: str, *, gpu: bool | None = None, platform: str = sys.platform) -> None:
    """Installs `requirement` ("torch==...") where the plain package index is not the right source; else does nothing.

    PyPI has CUDA builds for Linux and CPU builds for Windows and macOS. What pip would take as it is configured is
    tried first, so that a mirror or a folder of wheels is respected. Its dependencies are left to requirements.txt.
    """
    gpu = has_nvidia_gpu() if gpu is None else gpu
    if platform.startswith("linux") and not gpu:
        offer = pip.offered(requirement)
        if offer is None or not brings_cuda(offer):
            return
        index = CPU_INDEX
    elif platform == "win32" and gpu:
        index = CUDA_INDEX
    else:
        return
    if pip.offered(requirement, "--index-url", index) is None:
        if index == CPU_INDEX:
            pip.say("  The site of PyTorch's small CPU build cannot be reached: taking the large one (2 GB and more).")
        else:
            pip.say("  The site of PyTorch's CUDA build cannot be reached: taking the CPU build.")
        return
    pip.say(f"  {requirement}, the build for {'the CPU' if index == CPU_INDEX else 'NVIDIA GPUs'}")
    pip.install("--no-deps", "--index-url", index, requirement, need_gb=3.0 if index == CPU_INDEX else 9.0)
