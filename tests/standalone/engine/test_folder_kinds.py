"""Diffusers folders as found in the wild, and models' sizes read from the shapes of their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from lib_methods.checkpoints.geometry import unet_geometry, vae_geometry
from lib_methods.checkpoints.kinds import family_of
from lib_methods.checkpoints.layout import clip_shapes, unet_shapes, vae_shapes
from lib_methods.dreambooth.model.base import read_base
from lib_methods.errors import UserError
from standalone.dreambooth import load_training_model
from standalone.engine.checkpoint import checkpoint_sha256, load_checkpoint
from standalone.engine.weights import sha256_of
from tests.standalone import tiny
from tests.standalone.engine.test_file_kinds import accepted, refusal


@pytest.fixture
def folder(tmp_path: Path, models: dict[str, tiny.Tiny]) -> Callable[[str], Path]:
    def write(family: str) -> Path:
        return tiny.write_folder(models[family], tmp_path / family)

    return write


def edit(path: Path, **changes: Any) -> None:
    """Changes a configuration; a value of ... takes the entry out."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}), encoding="utf-8")


def sharded(part: Path, stem: str, variant: str = "") -> dict[str, str]:
    """Splits the weights of a part in two, as diffusers does above 10 GB; returns the index."""
    whole = part / f"{stem}.safetensors"
    state, infix = load_file(whole), f".{variant}" if variant else ""
    names = sorted(state)
    index: dict[str, str] = {}
    for number, keys in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}{infix}-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in keys}, part / file)
        index.update(dict.fromkeys(keys, file))
    whole.unlink()
    (part / f"{stem}.safetensors.index{infix}.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_sharded_folders_are_read(folder: Callable[[str], Path], variant: str) -> None:
    path = folder("sdxl")
    before = load_checkpoint(path).state_dict()
    sizes = read_base(path)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        sharded(path / part, "model" if "text" in part else "diffusion_pytorch_model", variant)
    after = accepted(path).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert read_base(path) == sizes
    assert checkpoint_sha256(path) == sha256_of(*sorted((path / "unet").glob("*.safetensors")))


def test_a_variant_is_read_and_the_plain_file_wins(folder: Callable[[str], Path]) -> None:
    path = folder("sd1")
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (path / part / f"{stem}.safetensors").rename(path / part / f"{stem}.fp16.safetensors")
    accepted(path)
    plain = path / "unet" / "diffusion_pytorch_model.safetensors"
    plain.write_bytes((path / "unet" / "diffusion_pytorch_model.fp16.safetensors").read_bytes())
    (path / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    accepted(path)
    plain.rename(path / "unet" / "diffusion_pytorch_model.ema.safetensors")
    (path / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    accepted(path)


@pytest.mark.parametrize(
    "name",
    ["../vae/x.safetensors", "/etc/passwd", "C:\\x.safetensors", "..\\x.safetensors", "C:x.safetensors", "..", "x.bin"],
)
def test_an_index_reaches_no_file_outside_its_folder(folder: Callable[[str], Path], name: str) -> None:
    path = folder("sd1")
    index = sharded(path / "unet", "diffusion_pytorch_model")
    (path / "vae" / "x.safetensors").write_bytes(b"secret")
    first = next(iter(index))
    edit(path / "unet" / "diffusion_pytorch_model.safetensors.index.json", weight_map={**index, first: name})
    assert "outside the folder" in refusal(path)


def _no_shard(path: Path) -> None:
    sharded(path / "unet", "diffusion_pytorch_model")
    (path / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def _no_index(path: Path) -> None:
    sharded(path / "unet", "diffusion_pytorch_model")
    (path / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()


def _index_of_more(path: Path) -> None:
    index = sharded(path / "unet", "diffusion_pytorch_model")
    more = {**index, "made.up": next(iter(index.values()))}
    edit(path / "unet" / "diffusion_pytorch_model.safetensors.index.json", weight_map=more)


def _bin(path: Path) -> None:
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def _lfs(path: Path) -> None:
    (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 12345\n"
    )


def _remove(name: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        target = path / name
        for file in target.iterdir() if target.is_dir() else []:
            file.unlink()
        target.rmdir() if target.is_dir() else target.unlink()

    return remove


def _edit(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda path: edit(path / name, **changes)


_UNET, _SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
FOLDERS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a shard is missing": ("sd1", _no_shard, "00002-of-00002.safetensors is missing"),
    "shards without an index": ("sd1", _no_index, "but not its"),
    "an index of too much": ("sd1", _index_of_more, "lacks 'made.up'"),
    "pickles only": ("sd1", _bin, "pickled"),
    "LFS pointers": ("sd1", _lfs, "Git LFS pointer"),
    "no VAE": ("sd1", _remove("vae"), "no vae/config.json"),
    "no weights": ("sd1", _remove("unet/diffusion_pytorch_model.safetensors"), "no weights in unet/"),
    "no scheduler": ("sd1", _remove("scheduler"), "no scheduler/scheduler_config.json"),
    "SDXL without its second encoder": ("sdxl", _remove("text_encoder_2"), "SDXL model without text_encoder_2/"),
    "the refiner": ("sdxl", _remove("text_encoder"), "refiner"),
    "no text encoder": ("sd1", _remove("text_encoder"), "without text_encoder/"),
    "SSD-1B": ("sdxl", _edit(_UNET, mid_block_type="UNetMidBlock2D"), "SSD-1B"),
    "Vega": ("sdxl", _edit(_UNET, transformer_layers_per_block=[1, [1, 1]]), "Vega"),
    "Vega, reversed": ("sdxl", _edit(_UNET, reverse_transformer_layers_per_block=[[1, 1], 1]), "Vega"),
    "no middle block": ("sdxl", _edit(_UNET, mid_block_type=None), "SSD-1B"),
    "an upscaler": ("sd2", _edit(_UNET, num_class_embeds=1000), "upscaler"),
    "unCLIP": ("sd2", _edit(_UNET, class_embed_type="projection"), "unCLIP"),
    "Kolors": ("sdxl", _edit(_UNET, encoder_hid_dim_type="text_proj"), "Kolors"),
    "GLIGEN": ("sd1", _edit(_UNET, attention_type="gated"), "GLIGEN"),
    "a video model": ("sd1", _edit(_UNET, _class_name="UNet3DConditionModel"), "UNet3DConditionModel"),
    "other blocks": ("sd1", _edit(_UNET, down_block_types=["SimpleCrossAttnDownBlock2D"] * 2), "unusual kind"),
    "a nonsense configuration": (
        "sd1",
        _edit(_UNET, block_out_channels="many"),
        "cannot be built from its",
    ),
    "text in place of a number": ("sd1", _edit(_UNET, in_channels="4"), "in_channels is '4'"),
    "an unknown activation": ("sd1", _edit("text_encoder/config.json", hidden_act="foo"), "hidden_act is 'foo'"),
    "other groups": ("sd1", _edit(_UNET, norm_num_groups=7), "do not split into 7 groups"),
    "other heads": ("sd1", _edit(_UNET, attention_head_dim=7), "7 heads"),
    "a nonsense size": ("sd1", _edit(_UNET, sample_size="large"), "cannot be built from its"),
    "Flux's VAE": ("sd1", _edit("vae/config.json", shift_factor=0.1), "unusual build (shift_factor"),
    "Playground's VAE": ("sdxl", _edit("vae/config.json", latents_mean=[0.1] * 4), "unusual build (latents_mean"),
    "another VAE": ("sd1", _edit("vae/config.json", _class_name="AutoencoderTiny"), "AutoencoderTiny"),
    "another text encoder": ("sd1", _edit("text_encoder/config.json", model_type="t5"), "'t5'"),
    "a short vocabulary": ("sd1", _edit("text_encoder/config.json", vocab_size=99), "99 tokens"),
    "EDM": ("sdxl", _edit(_SCHEDULER, _class_name="EDMDPMSolverMultistepScheduler"), "EDM"),
    "EDM, Euler": ("sdxl", _edit(_SCHEDULER, _class_name="EDMEulerScheduler", sigma_max=80.0), "EDM"),
    "EDM, continuous": ("sdxl", _edit(_SCHEDULER, timestep_type="continuous", sigma_max=700.0), "EDM"),
    "a million layers": ("sd1", _edit(_UNET, layers_per_block=10**6), "too many layers"),
    "flow matching": ("sd1", _edit(_SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), "flow matching"),
    "flow matching by UniPC": ("sd1", _edit(_SCHEDULER, prediction_type="flow_prediction"), "flow matching"),
    "predicts the image": ("sd1", _edit(_SCHEDULER, prediction_type="sample"), "prediction type 'sample'"),
    "unknown betas": ("sd1", _edit(_SCHEDULER, beta_schedule="laplace"), "'laplace'"),
    "bad betas": ("sd1", _edit(_SCHEDULER, beta_end=-1), "not a valid one"),
    "too many timesteps": ("sd1", _edit(_SCHEDULER, num_train_timesteps=10**9), "not a valid one"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_cannot_be_read_is_told_why(folder: Callable[[str], Path], kind: str) -> None:
    family, change, reason = FOLDERS[kind]
    path = folder(family)
    change(path)
    sentence = refusal(path)
    assert any(words in sentence for words in reason.split("|")), sentence


def test_a_latent_consistency_model_is_loaded_but_not_trained(tmp_path: Path, models: dict[str, tiny.Tiny]) -> None:
    config = {key: value for key, value in models["sd1"].unet.config.items() if not key.startswith("_")}
    parts = copy.copy(models["sd1"])
    parts.unet = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 16})
    path = tiny.write_folder(parts, tmp_path / "lcm")
    load_checkpoint(path)
    for refused in (load_training_model, read_base):
        with pytest.raises(UserError, match="latent consistency"):
            refused(path)
    edit(path / _UNET, time_cond_proj_dim=17)
    assert "1 have another size" in refusal(path)


def test_another_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "flux" / "transformer").mkdir(parents=True)
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "holds a FluxPipeline" in refusal(tmp_path / "flux")


@pytest.mark.parametrize(
    ("family", "size", "side"),
    [("sd1", None, 512), ("sd2", None, 768), ("sdxl", ..., 1024), ("sd1", [96, 96], 768), ("sd1", [96, 64], 576)],
)
def test_a_sample_size_may_be_a_pair_or_missing(
    folder: Callable[[str], Path], family: str, size: Any, side: int
) -> None:
    path = folder(family)
    edit(path / _UNET, sample_size=size)
    accepted(path)
    assert read_base(path).sizes.resolution == load_training_model(path).resolution == side


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
