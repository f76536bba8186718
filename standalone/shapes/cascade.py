"""The parts of `shapes-cascade`, a pixel cascade in DeepFloyd IF's layout in small: tokenizer, T5, UNets, schedules.

Stage I makes images of 32x32 pixels, stage II brings them to 128x128. Both predict velocity and variance.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

from standalone.shapes import networks
from standalone.shapes.styles import CELL, SIDE

TOKENS = 77  # what IFPipeline pads every prompt to
TEXT_DIM = 64
SMALL = SIDE // CELL  # side of stage I's images in pixels
_WORDS = (
    "a an of on at in the and picture photo oil painting pencil drawing mosaic small large plain striped dotted red"
    " yellow green cyan blue purple circles squares triangles crosses circle square triangle cross shapes left right"
    " top bottom all over white grey black brown background"
).split()

_COMMON: dict[str, Any] = {
    "out_channels": 6,  # velocity and variance
    "act_fn": "gelu",
    "time_embedding_act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "encoder_hid_dim": TEXT_DIM,
    "cross_attention_dim": TEXT_DIM,
    "cross_attention_norm": "group_norm",
    "attention_head_dim": 32,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "mid_block_scale_factor": 2**0.5,
    "resnet_out_scale_factor": 2**0.5,
    "resnet_time_scale_shift": "scale_shift",
    "norm_num_groups": 8,
    # downsample first: nothing is computed at full size on the way down
    "layers_per_block": (0, 1, 1, 1),
}
STAGE_1: dict[str, Any] = {
    **_COMMON,
    "sample_size": SMALL,
    "in_channels": 3,
    "block_out_channels": (16, 32, 64, 128),
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",) * 2,
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 2,
}
STAGE_2: dict[str, Any] = {
    **_COMMON,
    "sample_size": SIDE,
    "in_channels": 6,  # and the upscaled image
    "block_out_channels": (16, 16, 32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",),
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 3,
    "class_embed_type": "timestep",  # the noise level of the upscaled image
    "resnet_skip_time_act": True,
}


def unet(stage: int) -> UNet2DConditionModel:
    """The UNet of stage 1 or 2, with fresh weights."""
    return UNet2DConditionModel(**(STAGE_1 if stage == 1 else STAGE_2))


def tokenizer() -> T5TokenizerFast:
    """T5's tokenizer with the world's words, and letters to spell any other word with."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -4.0) for word in _WORDS if len(word) > 1]
    pieces += [(letter, -10.0) for letter in ("▁", *string.ascii_lowercase, *string.digits, *",.-'")]
    pieces += [("▁a", -4.0)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def text_encoder(kind: str = "t5") -> T5EncoderModel | CLIPTextModel:
    """A small T5 encoder (version 1.1: gated GELU) with fresh weights, or to compare it with, the CLIP text encoder of
    `shapes` ("clip")."""
    if kind == "clip":
        return networks.text_encoder()
    return T5EncoderModel(
        T5Config(
            vocab_size=128,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=2 * TEXT_DIM,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def tokenize(words: T5TokenizerFast | None, captions: list[str]) -> tuple[Tensor, Tensor | None]:
    """Token ids and attention mask, each of shape (captions, 77), as IFPipeline makes them; for CLIP, which has
    neither `words` nor a mask, as `shapes` has them."""
    if words is None:
        return networks.tokenize(captions), None
    found = words(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return found.input_ids, found.attention_mask


def schedule(stage: int) -> DDPMScheduler:
    """IF's sampler: 1000 steps of the cosine schedule, learned variance, dynamic thresholding.

    Unlike IF the UNets predict the velocity, not the noise. In the noisiest steps noise is all but the input itself:
    after 1,000 steps of learning it, images showed shapes but did not follow the prompt.
    """
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        prediction_type="v_prediction",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5 if stage == 1 else 1.0,
    )


def noising_schedule() -> DDPMScheduler:
    """The noise that is added to stage II's upscaled image; its levels are timesteps, 0 to 999."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def upscaled(small: Tensor) -> Tensor:
    """Stage I's images at stage II's size, as IFSuperResolutionPipeline enlarges them."""
    return torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear", align_corners=True)
