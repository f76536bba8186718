"""The published models' sizes are read from the shapes of their weights. No weight is made: shapes are enough."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from lib_methods.checkpoints.geometry import unet_geometry, vae_geometry
from lib_methods.checkpoints.kinds import family_of
from lib_methods.checkpoints.layout import clip_shapes, unet_shapes, vae_shapes
from tests.standalone import tiny

SD1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": (8,) * 4,
    "layers_per_block": 2,
    "transformer_layers_per_block": (1,) * 4,
    "use_linear_projection": False,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "in_channels": 4,
    "out_channels": 4,
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "SD 1.5": ("sd1", SD1),
    "SD 1.5 inpainting": ("sd1", {**SD1, "in_channels": 9}),
    "InstructPix2Pix": ("sd1", {**SD1, "in_channels": 8}),
    "SD 2.1": (
        "sd2",
        {**SD1, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    ),
    "SDXL": (
        "sdxl",
        {
            **SD1,
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_unets(name: str) -> None:
    family, config = PUBLISHED[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    found = unet_geometry(tiny.ldm_unet(unet), family)
    assert {key: found[key] for key in config} == config
    with torch.device("meta"):
        again = UNet2DConditionModel(**found)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in unet.state_dict().items()}


def test_the_published_vae() -> None:
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
        state = tiny.ldm_vae(vae)
    found = vae_geometry(state)
    assert {key: found[key] for key in config} == config


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_families_are_told_apart(family: str) -> None:
    assert family_of(tiny.ldm_state(tiny.build(family))) == family


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_layout_is_that_of_the_published_unets(name: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PUBLISHED[name][1])
    assert unet_shapes(unet.config) == {key: tuple(value.shape) for key, value in unet.state_dict().items()}


def test_the_layout_is_that_of_vae_and_text_encoders(models: dict[str, tiny.Tiny]) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
    assert vae_shapes(vae.config) == {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    for text in models["sdxl"].texts:
        config, bare = text.config, {key.removeprefix("text_model."): v for key, v in text.state_dict().items()}
        found = clip_shapes(
            vocab=config.vocab_size,
            positions=config.max_position_embeddings,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            projection=config.projection_dim if "text_projection.weight" in bare else None,
        )
        bare.pop("embeddings.position_ids", None)
        assert found == {key: tuple(value.shape) for key, value in bare.items()}
