"""A UNet whose weights are sharded: each process of a training holds a part of every weight, gradient and moment.

PyTorch's own FSDP2 (`fully_shard`; Zhao et al. 2023, arXiv 2304.11277). Before a block computes, its weights are
gathered; after it the other processes' parts are let go again. DeepSpeed's ZeRO stages (Rajbhandari et al. 2020, arXiv
1910.02054) ask for the same, and are done by the same code. Tensors that are not sharded pass through all functions
here as they are, so that callers need not ask.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.files import read_json

# what is gathered at a time; inner ones first, an outer one then holds what is left
_BLOCKS = frozenset({"BasicTransformerBlock", "Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"})
# names of FSDP's strategies, which version 2 has as a switch
_WHOLE = frozenset({"no_shard", "3"})
_KEPT = frozenset({"shard_grad_op", "hybrid_shard_zero2", "2", "5", "false"})


@dataclass(frozen=True)
class Sharding:
    """How the weights are to be sharded. asked_by: the launcher's name for it. frees: whether a block's weights are let
    go between forward and backward pass (ZeRO stage 3), which takes less memory and a second gathering."""

    asked_by: str
    frees: bool

    def sentence(self, count: int) -> str:
        """For the user."""
        more = "" if self.frees else "; within a step each holds all weights"
        return f"The UNet's weights and all that belongs to them are sharded over {count} processes{more}."


def asked_sharding(environment: Mapping[str, str] = os.environ) -> Sharding | None:
    """What the configuration of `accelerate launch` asks for; None for whole copies."""
    if is_on(environment, "ACCELERATE_USE_FSDP"):
        names = ("FSDP_SHARDING_STRATEGY", "FSDP_RESHARD_AFTER_FORWARD")
        asked = {environment.get(name, "").lower() for name in names}
        return None if asked & _WHOLE else Sharding("FSDP", frees=not asked & _KEPT)
    if is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        stage = _zero_stage(environment)
        return None if stage == 0 else Sharding("DeepSpeed", frees=stage == 3)
    return None


def _zero_stage(environment: Mapping[str, str]) -> int:
    """DeepSpeed's stage, of its own configuration file where there is one. Raises DreamBoothError."""
    try:
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
        if file and file.lower() != "none":
            return int(read_json(Path(file)).get("zero_optimization", {}).get("stage", 0))
        return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DreamBoothError("The launcher's configuration for DeepSpeed cannot be read.") from error


def is_on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes")


def can_shard() -> bool:
    """Whether this PyTorch can: from 2.6 on."""
    return _fully_shard() is not None


def _fully_shard() -> Callable[..., Any] | None:
    try:
        return cast("Callable[..., Any]", importlib.import_module("torch.distributed.fsdp").fully_shard)
    except (ImportError, AttributeError):
        return None


def shard(unet: nn.Module, sharding: Sharding, device: torch.device) -> None:
    """Shards all weights of `unet` over the processes, block by block, and takes them to `device`.

    The module's calls are collective from then on: each process must make the same ones. Its weights are other
    objects than before. Raises DreamBoothError where PyTorch is too old.
    """
    fully_shard = _fully_shard()
    if fully_shard is None:
        raise DreamBoothError("Sharded weights need PyTorch 2.6 or newer.")
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh(
        device.type, (torch.distributed.get_world_size(),)
    )
    for module in reversed(list(unet.modules())):
        if module is unet or type(module).__name__ in _BLOCKS:
            fully_shard(module, mesh=mesh, reshard_after_forward=sharding.frees)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor` only."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process' part, which shares its memory with `tensor`."""
    return cast("Tensor", cast("Any", tensor).to_local()) if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of the tensor. Collective."""
    return cast("Tensor", cast("Any", tensor).full_tensor()) if is_sharded(tensor) else tensor


def sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole `value` sharded as `parameter` is, on its device. Collective."""
    there = value.to(parameter.device)
    if not is_sharded(parameter):
        return there
    like = cast("Any", parameter)
    distribute = importlib.import_module("torch.distributed.tensor").distribute_tensor
    return cast("Tensor", distribute(there, like.device_mesh, like.placements))


def joined(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole of a value of which each process has its `part`, in the way that it has `parameter`. Collective."""
    if not is_sharded(parameter):
        return part
    like = cast("Any", parameter)
    made = importlib.import_module("torch.distributed.tensor").DTensor.from_local(
        part.to(parameter.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return whole(made)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of each tensor, sharded ones copied to the CPU one after another; nothing where not `keep`, for processes
    that only must take part. Collective."""
    return dict(_gathered(tensors, keep))


def _gathered(tensors: Mapping[str, Tensor], keep: bool) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        found = whole(tensor.detach())
        if keep:
            yield name, found.cpu() if is_sharded(tensor) else found
