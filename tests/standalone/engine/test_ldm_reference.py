"""Our loading against the original code: weights of `ldm` classes, loaded by us, compute what `ldm` computes.

The original classes come from the package stable-diffusion-sdkit; without it these tests are skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from standalone.engine.checkpoint import load_checkpoint
from tests.standalone import tiny

openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
autoencoder = pytest.importorskip("ldm.modules.diffusionmodules.model")

GEOMETRIES: dict[str, dict[str, Any]] = {
    "one level": {"channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1], "num_heads": 4},
    "small": {"channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [1, 2], "num_heads": 4},
    "two blocks": {"channel_mult": [1, 2], "num_res_blocks": 2, "attention_resolutions": [1], "num_heads": 8},
    "SD1": {"channel_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attention_resolutions": [4, 2, 1], "num_heads": 8},
    "SD2": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
    },
    "inpainting": {
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [1, 2],
        "num_heads": 4,
        "in_channels": 9,
    },
}


@pytest.fixture(autouse=True)
def _omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ldm` imports omegaconf for one comparison of types; the package itself is not needed."""
    listconfig = ModuleType("omegaconf.listconfig")
    listconfig.ListConfig = type("ListConfig", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.listconfig", listconfig)


def shake(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere: the original starts some layers at zero, which would hide them."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_unet_computes_what_ldm_computes(tmp_path: Path, name: str) -> None:
    wanted = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": tiny.TEXT,
        "use_checkpoint": False,
        "legacy": False,
        **GEOMETRIES[name],
    }
    reference = shake(openaimodel.UNetModel(**wanted))
    model = tiny.build("sd2" if name == "SD2" else "sd1")
    state = {key: value for key, value in tiny.ldm_state(model).items() if not key.startswith("model.diffusion_model.")}
    state.update({f"model.diffusion_model.{key}": value for key, value in reference.state_dict().items()})
    config = tiny.ldm_yaml(model)
    config["model"]["params"]["unet_config"]["params"] = wanted
    path = tmp_path / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    x = torch.randn(2, wanted["in_channels"], 16, 8)
    t, context = torch.tensor([7.25, 900.0]), torch.randn(2, 5, tiny.TEXT)
    with torch.no_grad():
        expected = reference(x, t, context=context)
        cond = {"c_crossattn": [context], "c_concat": [x[:, 4:]]}
        found = load_checkpoint(path).apply_model(x[:, :4], t, cond)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("mult", "blocks"), [([1, 1, 2, 4], 1), ([1, 2], 2)])
def test_the_vae_computes_what_ldm_computes(tmp_path: Path, mult: list[int], blocks: int) -> None:
    config = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": mult,
        "num_res_blocks": blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    encoder, decoder = shake(autoencoder.Encoder(**config)), shake(autoencoder.Decoder(**config))
    before, after = shake(torch.nn.Conv2d(8, 8, 1)), shake(torch.nn.Conv2d(4, 4, 1))
    parts = {"encoder": encoder, "decoder": decoder, "quant_conv": before, "post_quant_conv": after}
    model = tiny.build("sd1")
    state = {key: value for key, value in tiny.ldm_state(model).items() if not key.startswith("first_stage_model.")}
    for name, part in parts.items():
        state.update({f"first_stage_model.{name}.{key}": value for key, value in part.state_dict().items()})
    path = tmp_path / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(tiny.ldm_yaml(model)), encoding="utf-8")

    loaded = load_checkpoint(path)
    image, latents = torch.rand(1, 3, 64, 32) * 2 - 1, torch.randn(1, 4, 8, 6)
    with torch.no_grad():
        mean = before(encoder(image)).chunk(2, dim=1)[0] * loaded.scale_factor
        picture = decoder(after(latents / loaded.scale_factor))
        encoded = loaded.get_first_stage_encoding(loaded.encode_first_stage(image))
    assert (encoded - mean).abs().max() <= 1e-4 * mean.abs().max()
    assert (loaded.decode_first_stage(latents) - picture).abs().max() <= 1e-4 * picture.abs().max()
