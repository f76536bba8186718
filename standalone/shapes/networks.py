"""The geometry of the `shapes` checkpoint, an SD1 layout in small, and what trains its networks: tokens, optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from standalone.engine.text import clip_tokenizer
from standalone.shapes.world import UNIT

SCALE_FACTOR = 0.18215
FINAL_NORM_BIAS = 0.25  # see `text_encoder`
CONTEXT_DIM = 64
TOKENS = 77
EOS_ID = 49407

# the same numbers as in models/shapes/shapes.yaml, which is what a WebUI reads
UNET_CONFIG: dict[str, Any] = {
    "sample_size": UNIT // 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "cross_attention_dim": CONTEXT_DIM,
    "attention_head_dim": 4,
}
VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    # 64 channels at least: group norm with 32 groups of one channel each would erase flat colours
    "block_out_channels": (64, 64, 64, 64),
    # the encoder is plain strided convolutions up to its middle block, the decoder has one block per level
    "layers_per_block": 0,
    "latent_channels": 4,
    "sample_size": UNIT,
    "scaling_factor": SCALE_FACTOR,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": CONTEXT_DIM,
    "intermediate_size": CONTEXT_DIM * 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}


def unet() -> UNet2DConditionModel:
    """The noise predictor, with fresh weights."""
    return UNet2DConditionModel(**UNET_CONFIG)


def vae() -> AutoencoderKL:
    """The autoencoder: factor 8, four channels, with fresh weights."""
    return AutoencoderKL(**VAE_CONFIG)


def text_encoder() -> CLIPTextModel:
    """A small CLIP text encoder with fresh weights.

    Its final layer norm is fixed with a bias of 0.25: the WebUI's prompt emphasis divides by the mean of the output,
    which a layer norm without bias makes zero.
    """
    model = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    final = final_norm(model)
    torch.nn.init.constant_(final.bias, FINAL_NORM_BIAS)
    final.requires_grad_(False)
    return model


def final_norm(model: CLIPTextModel) -> torch.nn.LayerNorm:
    """The final layer norm; transformers 5.6 dropped the `text_model` level of the module tree."""
    inner = getattr(model, "text_model", model)
    return inner.final_layer_norm


def noise_schedule() -> DDPMScheduler:
    """SD1's schedule: 1000 steps, "scaled linear" betas, noise as the target."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
    )


@lru_cache(maxsize=100_000)
def _ids(text: str) -> tuple[int, ...]:
    return tuple(clip_tokenizer()(text, padding="max_length", max_length=TOKENS, truncation=True)["input_ids"])


def tokenize(captions: list[str]) -> Tensor:
    """Token ids of shape (captions, 77)."""
    return torch.tensor([_ids(text) for text in captions])


class MatrixOptimizer:
    """Muon on `matrices` and Adam on the `rest` of some modules' parameters.

    Parameters whose name holds one of `EDGES` (first and last layers, embeddings) go to Adam, whose steps suit them
    better.
    """

    EDGES = ("conv_in", "conv_out", "quant_conv", "embedding", "time_emb_proj", "shared", "attention_bias")

    def __init__(self, modules: Iterable[nn.Module], matrix_rate: float, rest_rate: float) -> None:
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.matrices = [p for name, p in named if p.ndim >= 2 and not any(edge in name for edge in self.EDGES)]
        held = {id(p) for p in self.matrices}
        self.flat: list[Tensor] = [p.detach().view(p.shape[0], -1) for p in self.matrices]
        self.muon = torch.optim.Muon(self.flat, lr=matrix_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        rest = [p for p in self.parameters if id(p) not in held]
        self.adam = torch.optim.Adam(rest, lr=rest_rate, betas=(0.9, 0.99), fused=True)
        self.rates = (matrix_rate, rest_rate)

    def step(self, share: float = 1.0) -> None:
        """One step at `share` of the full learning rates; clears the gradients."""
        for view, parameter in zip(self.flat, self.matrices):
            view.grad = None if parameter.grad is None else parameter.grad.view_as(view)
        for part, rate in zip((self.muon, self.adam), self.rates):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
