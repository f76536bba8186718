"""A tiny cascade with random weights, in the folders in which DeepFloyd IF and the x4 upscaler are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 16  # of T5's embeddings
WORDS = ("a", "photo", "of", "cat", "dog", "red", "blue", "oil", "painting")

_UNET: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.414,
    "mid_block_scale_factor": 1.414,
    "cross_attention_norm": "group_norm",
    "time_embedding_act_fn": "gelu",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}
_NOISE = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}


def tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces + [(f"▁{word}", -1.0) for word in WORDS] + letters, extra_ids=0)


def text_encoder(width: int = WIDTH) -> T5EncoderModel:
    config = T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def first_stage(out: Path | None, **changes: Any) -> IFPipeline:
    """Stage I, 16 pixels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**_UNET, "sample_size": 16, "in_channels": 3, "out_channels": 6, **changes})
    _lively(unet)
    made = IFPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        unet=unet.eval(),
        scheduler=DDPMScheduler(**_NOISE),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return _saved(made, out)


def second_stage(out: Path | None, **changes: Any) -> IFSuperResolutionPipeline:
    """Stage II, 16 to 32 pixels, without a text encoder of its own."""
    torch.manual_seed(1)
    config = {**_UNET, "sample_size": 32, "in_channels": 6, "out_channels": 6, "class_embed_type": "timestep"}
    unet = UNet2DConditionModel(**{**config, **changes})
    _lively(unet)
    made = IFSuperResolutionPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=unet.eval(),
        scheduler=DDPMScheduler(**{**_NOISE, "sample_max_value": 1.0}),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return _saved(made, out)


def third_stage(out: Path | None) -> StableDiffusionUpscalePipeline:
    """Stage III, x4, predicting v in latents."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_class_embeds=1000,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.08333,
    )
    config = CLIPTextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=256, eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    made = StableDiffusionUpscalePipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=_clip_tokenizer(),
        unet=unet.eval(),
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02),
        scheduler=DDIMScheduler(
            prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False, steps_offset=1
        ),
    )
    return _saved(made, out)


def cascade(root: Path) -> tuple[Path, Path, Path]:
    """The folders of all three stages below `root`."""
    folders = root / "IF-I", root / "IF-II", root / "x4-upscaler"
    if not root.is_dir():
        for make, folder in zip((first_stage, second_stage, third_stage), folders):
            make(folder)
    return folders


def _lively(unet: UNet2DConditionModel) -> None:
    """Random weights make little of a text; these make more."""
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.2)


def _clip_tokenizer() -> CLIPTokenizer:
    letters = [chr(number) for number in range(97, 123)]
    vocabulary = {word: number for number, word in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    vocabulary |= {"<|startoftext|>": 256, "<|endoftext|>": 257}
    vocabulary |= {f"<{number}>": number for number in range(len(letters) * 2, 256)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _saved(pipeline: Any, out: Path | None) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    if out is not None:
        pipeline.save_pretrained(out)
    return pipeline
