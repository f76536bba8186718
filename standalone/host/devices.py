"""Devices and precisions. `configure` sets them when the checkpoint is loaded."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import torch

cpu: torch.device = torch.device("cpu")
device: torch.device = cpu
dtype: torch.dtype = torch.float32
dtype_vae: torch.dtype = torch.float32
dtype_unet: torch.dtype = torch.float32
dtype_inference: torch.dtype = torch.float32
fp8: bool = False
force_fp16: bool = False
unet_needs_upcast: bool = False


def has_mps() -> bool:
    """Whether this is a Mac whose GPU torch can use."""
    return torch.backends.mps.is_available()


def get_optimal_device_name() -> str:
    """ "cuda", "mps" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if has_mps() else "cpu"


def get_optimal_device() -> torch.device:
    return torch.device(get_optimal_device_name())


def configure(wanted: str | torch.device | None, precision: torch.dtype | None) -> None:
    """Sets device and precision; None chooses: the GPU if there is one, half precision on CUDA and single elsewhere."""
    global device, dtype, dtype_vae, dtype_unet, dtype_inference
    device = get_optimal_device() if wanted is None else torch.device(wanted)
    dtype = precision or (torch.float16 if device.type == "cuda" else torch.float32)
    dtype_vae = dtype_unet = dtype_inference = dtype


def torch_gc() -> None:
    """Gives unused memory of the GPU back."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def autocast(disable: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Nothing is cast: every part of the model runs in its own precision."""
    return contextlib.nullcontext()


def without_autocast(disable: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Turns a caller's CUDA autocast off."""
    return (
        torch.autocast("cuda", enabled=False)
        if torch.is_autocast_enabled() and not disable
        else contextlib.nullcontext()
    )


def cond_cast_unet(input: torch.Tensor) -> torch.Tensor:
    return input.to(dtype_unet) if unet_needs_upcast else input


def cond_cast_float(input: torch.Tensor) -> torch.Tensor:
    return input.float() if unet_needs_upcast else input


class NansException(Exception):
    """The model computed something that is not a number."""


def test_for_nans(x: torch.Tensor, where: str) -> None:
    """Raises NansException when `x` holds a NaN; `where` is "unet" or "vae"."""
    if not torch.isnan(x).any():
        return
    part = {"unet": "The UNet", "vae": "The VAE"}.get(where, "The model")
    raise NansException(
        f"{part} computed values that are not numbers (NaN). Try less extreme settings and weights in the prompt; "
        "if that does not help, the checkpoint is damaged or needs more than 16-bit precision."
    )
