"""Tiny UNets of every codebase at hand, for looking at their cross-attention without any host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

DIM, TOKENS = 12, 7
UNets = Callable[[nn.Module, Tensor, Tensor], Tensor]


def diffusers_unet(seed: int = 0, **more: Any) -> UNet2DConditionModel:
    """Two levels and a middle, with cross-attention at three sizes."""
    torch.manual_seed(seed)
    wanted: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": DIM,
        "attention_head_dim": 4,
    }
    unet = UNet2DConditionModel(**{**wanted, **more}).eval()
    return loud(unet)


def ldm_unet(seed: int = 0, **more: Any) -> nn.Module:
    """The same in `ldm`; skips the test where the package stable-diffusion-sdkit is not installed."""
    with _omegaconf():
        openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
        torch.manual_seed(seed)
        wanted: dict[str, Any] = {
            "image_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 32,
            "num_res_blocks": 1,
            "attention_resolutions": [1, 2],
            "channel_mult": [1, 2],
            "num_heads": 2,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": DIM,
            "use_checkpoint": False,
            "legacy": False,
        }
        unet: nn.Module = openaimodel.UNetModel(**{**wanted, **more}).eval()
    for parameter in unet.parameters():  # some layers start at zero, which would hide what comes before them
        nn.init.normal_(parameter, std=0.1)
    return loud(unet)


def loud(unet: Any) -> Any:
    """Queries and keys so large that attention is not almost the same everywhere."""
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            parameter.data.mul_(3)
    return unet


@contextmanager
def _omegaconf() -> Iterator[None]:
    """`ldm` imports omegaconf for one comparison of types; the package itself is not needed."""
    listconfig = ModuleType("omegaconf.listconfig")
    listconfig.ListConfig = type("ListConfig", (), {})  # type: ignore[attr-defined]
    named = {"omegaconf": ModuleType("omegaconf"), "omegaconf.listconfig": listconfig}
    with patch.dict(sys.modules, named):
        yield


MAKERS: dict[str, Callable[..., Any]] = {"diffusers": diffusers_unet, "ldm": ldm_unet}


def predict(unet: Any, x: Tensor, context: Tensor, t: float = 300.0) -> Tensor:
    """One run of either UNet."""
    times = torch.full((len(x),), t, dtype=torch.float32)
    if isinstance(unet, UNet2DConditionModel):
        result: Tensor = unet(x, times, encoder_hidden_states=context).sample
        return result
    return unet(x, times, context=context)


def latents(
    rows: int = 2, height: int = 8, width: int = 8, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompts(rows: int = 2, tokens: int = TOKENS, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, tokens, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def leftovers(unet: nn.Module) -> list[str]:
    """What is still on the model that was not there: overrides, hooks."""
    return [
        name
        for name, module in unet.named_modules()
        if "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    ]
