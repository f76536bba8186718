"""Diffusers folders as found in the wild: loader, trainer and plan give the same verdict, with the real cause."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from lib_methods.dreambooth.model.base import read_base
from lib_methods.errors import UserError
from standalone.dreambooth import load_training_model
from standalone.engine.checkpoint import checkpoint_sha256, load_checkpoint
from standalone.engine.weights import sha256_of
from tests.standalone import tiny
from tests.standalone.verdicts import accepted, refusal


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
