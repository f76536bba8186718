"""Counts the memory of a training step at full size without computing it: `python -m tests.dreambooth.count_memory`.

The UNet's forward and backward pass run on tensors without content; what is counted is the bytes of all tensors that
live at once, as a GPU would have to hold them: weights, what the backward pass keeps, gradients, and everything in
between. The same for drawing: the UNet's forward pass without gradients, and an image's way through the VAE. Not
counted: what the GPU's libraries take for themselves, and gaps between tensors. The tables in
`lib_methods.dreambooth.training.plan` come from here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.modeling_utils import no_init_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lib_methods.attention.checkpointing import checkpointed
from lib_methods.device import LiveBytes

_SD1: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
GEOMETRY: Mapping[str, dict[str, Any]] = {
    "sd1": _SD1,
    "sd2": {**_SD1, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        **_SD1,
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


@dataclass(frozen=True)
class Counted:
    """Bytes: the weights, and what a pass holds at most on top of them."""

    weights: int
    peak: int


def count(family: str, side: int, rows: int, mode: str, checkpointing: bool, lora_rank: int = 0) -> Counted:
    """One pass of `rows` latents of `side` x `side`, gradients let go as soon as they are there.

    mode: "half" (weights and computing in bf16), "mixed" (fp32 weights, computing as CUDA's autocast does), "fp32".
    lora_rank: train LoRAs of this rank on all linear layers of the transformers instead of the weights.
    """
    with FakeTensorMode(), LiveBytes() as live:
        unet, inputs, weights = _unet(live, family, side, rows, mode, lora_rank)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda it: setattr(it, "grad", None))
        with checkpointed(unet) if checkpointing else nullcontext():
            with _computing(mode):
                loss = unet(**inputs)[0].float().square().mean()
            loss.backward()
        return Counted(weights, live.peak - weights)


def count_denoising(family: str, side: int, rows: int, mode: str) -> Counted:
    """A forward pass without gradients, as images are drawn: with guidance two rows an image.

    mode: as in `count`; "mixed" keeps the weights' copies in half precision, as autocast does for those that are
    trained.
    """
    with torch.no_grad(), FakeTensorMode(), LiveBytes() as live:
        unet, inputs, weights = _unet(live, family, side, rows, mode)
        with _computing(mode):
            unet(**inputs)
        return Counted(weights, live.peak - weights)


def count_autoencoder(side: int, *, encoding: bool = False) -> Counted:
    """One image of `side` x `side` latents through the VAE in fp32: decoded, or encoded."""
    with torch.no_grad(), FakeTensorMode(), LiveBytes() as live:
        with no_init_weights():
            vae = AutoencoderKL(**VAE).eval()
        for parameter in vae.parameters():
            live.see(parameter)
        weights = live.live
        given = torch.empty(1, 3, 8 * side, 8 * side) if encoding else torch.empty(1, 4, side, side)
        live.peak = live.live
        (vae.encode if encoding else vae.decode)(given, return_dict=False)
        return Counted(weights, live.peak - weights)


def _unet(
    live: LiveBytes, family: str, side: int, rows: int, mode: str, lora_rank: int = 0
) -> tuple[Any, dict[str, Any], int]:
    """A UNet, what it is asked with, and the bytes of its weights; the peak begins here."""
    dtype, before = torch.bfloat16 if mode == "half" else torch.float32, torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            unet = UNet2DConditionModel(**GEOMETRY[family]).train()
    finally:
        torch.set_default_dtype(before)
    if lora_rank:
        _put_loras(unet, lora_rank)
    if mode == "mixed":  # CUDA's autocast keeps norms in fp32, the CPU's does not
        for module in unet.modules():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    for parameter in unet.parameters():
        live.see(parameter)
    weights = live.live
    added = {"text_embeds": torch.empty(rows, 1280, dtype=dtype), "time_ids": torch.empty(rows, 6)}
    inputs = {
        "sample": torch.empty(rows, 4, side, side, dtype=dtype),
        "timestep": torch.zeros(rows, dtype=torch.long),
        "encoder_hidden_states": torch.empty(rows, 77, GEOMETRY[family]["cross_attention_dim"], dtype=dtype),
        "added_cond_kwargs": added,
        "return_dict": False,
    }
    live.peak = live.live
    return unet, inputs, weights


def _computing(mode: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if mode == "mixed" else nullcontext()


def _put_loras(unet: nn.Module, rank: int) -> None:
    unet.requires_grad_(False)
    for name, layer in list(unet.named_modules()):
        if not isinstance(layer, nn.Linear) or "attentions" not in name:
            continue
        down = nn.Parameter(torch.empty(rank, layer.in_features))
        up = nn.Parameter(torch.empty(layer.out_features, rank))
        layer.register_parameter("down", down)
        layer.register_parameter("up", up)
        layer.forward = _with_lora(layer, layer.forward)  # type: ignore[assignment, method-assign]


def _with_lora(layer: Any, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(hidden: Tensor) -> Tensor:
        low = nn.functional.linear(hidden, layer.down.to(hidden.dtype))
        return original(hidden) + nn.functional.linear(low, layer.up.to(hidden.dtype))

    return forward


def fitted(family: str, mode: str, checkpointing: bool, lora_rank: int = 0) -> tuple[int, float]:
    """(bytes that do not depend on the images, bytes for each cell of a latent and row), from one and two rows."""
    side = int(GEOMETRY[family]["sample_size"])
    one, two = (count(family, side, rows, mode, checkpointing, lora_rank).peak for rows in (1, 2))
    return 2 * one - two, (two - one) / side**2


def main(families: Sequence[str]) -> None:
    """Print the table."""
    for family in families:
        for mode, rank in (("half", 0), ("mixed", 0), ("fp32", 0), ("half", 16)):
            for checkpointing in (False, True):
                fixed, cell = fitted(family, mode, checkpointing, rank)
                kind = f"{mode:6} {'LoRA' if rank else 'full'} {'checkpointing' if checkpointing else 'plain':14}"
                print(f"{family:5} {kind} {fixed / 2**30:6.3f} GiB {cell:10.0f} bytes a cell", flush=True)
        side = int(GEOMETRY[family]["sample_size"])
        for mode in ("half", "mixed", "fp32"):
            one, two = (count_denoising(family, side, rows, mode).peak for rows in (1, 2))
            fixed, cell = 2 * one - two, (two - one) / side**2
            print(f"{family:5} {mode:6} denoising {fixed / 2**30:19.3f} GiB {cell:10.0f} bytes a cell", flush=True)
        for name, encoding in (("decoding", False), ("encoding", True)):
            found = count_autoencoder(side, encoding=encoding)
            cell, weights = found.peak / side**2, found.weights / 2**30
            print(f"{family:5} fp32   {name} {weights:20.3f} GiB {cell:10.0f} bytes a cell", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(GEOMETRY))
