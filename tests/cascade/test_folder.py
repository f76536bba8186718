"""A cascade's folders are read as published; what is missing or wrong is named in a sentence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_methods.cascade.folder import read_cascade, read_stage
from lib_methods.cascade.parts import load
from lib_methods.errors import CheckpointError
from lib_methods.safetensors import read_tensors, write_tensors
from tests.cascade.models import text_encoder

CPU = torch.device("cpu")
Folders = tuple[Path, Path, Path]
SCHEDULER = "scheduler/scheduler_config.json"
UNET = "diffusion_pytorch_model"


def test_stages_are_known_by_their_configurations(folders: Folders) -> None:
    found = read_cascade(folders)
    assert [stage.number for stage in found.stages] == [1, 2, 3]
    assert [stage.side for stage in found.stages] == [16, 32, 32]
    assert [stage.channels for stage in found.stages] == [3, 3, 4]
    assert [stage.factor for stage in found.stages] == [1, 1, 4]
    first, second, _ = found.stages
    assert second.text is first.text  # stage II is often downloaded without one


def test_an_encoder_that_comes_with_both_stages_is_loaded_once(folders: Folders, with_text: Path) -> None:
    first, second = read_cascade([folders[0], with_text]).stages
    assert first.text is not None and second.text is first.text
    assert read_stage(with_text).text is not first.text


def test_a_host_without_diffusers_reads_them_too(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert len(read_cascade(folders).stages) == 3


def test_any_subset_and_one_folder_for_all(folders: Folders) -> None:
    assert [stage.number for stage in read_cascade(folders[1:]).stages] == [2, 3]
    assert [stage.number for stage in read_cascade([folders[0].parent]).stages] == [1, 2, 3]


def copied(folders: Folders, tmp_path: Path, number: int = 0) -> Path:
    return Path(shutil.copytree(folders[number], tmp_path / folders[number].name))


@pytest.mark.parametrize("how", ["variant", "shards", "sharded variant"])
def test_variants_and_shards_are_found(folders: Folders, tmp_path: Path, how: str) -> None:
    folder = copied(folders, tmp_path)
    for part, stem in (("unet", UNET), ("text_encoder", "model")):
        file = folder / part / f"{stem}.safetensors"
        tensors, _ = read_tensors(file)
        file.unlink()
        ending = ".fp16" if "variant" in how else ""
        if how == "variant":
            write_tensors(file.with_name(f"{stem}.fp16.safetensors"), {k: v.half() for k, v in tensors.items()})
            continue
        names, listed = sorted(tensors), dict[str, str]()
        for number, chosen in enumerate((names[::2], names[1::2]), 1):
            shard = f"{stem}{ending}-{number:05d}-of-00002.safetensors"
            write_tensors(file.with_name(shard), {name: tensors[name] for name in chosen})
            listed |= dict.fromkeys(chosen, shard)
        index = file.with_name(f"{stem}.safetensors.index{ending}.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": listed}), "utf-8")
    stage, original = read_stage(folder), read_stage(folders[0])
    assert stage.text is not None and original.text is not None
    for own, other in ((stage.unet, original.unet), (stage.text, original.text)):
        ours = load(own, CPU, torch.float32).state_dict()
        for name, tensor in load(other, CPU, torch.float32).state_dict().items():
            torch.testing.assert_close(ours[name], tensor, atol=2e-3, rtol=2e-3)


def edited(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def pickled(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.safetensors").rename(folder / "unet" / f"{UNET}.bin")


def other_width(folder: Path) -> None:
    encoder = text_encoder(24)
    encoder.save_pretrained(folder / "text_encoder")


@pytest.mark.parametrize(
    ("number", "spoil", "sentence"),
    [
        (0, lambda f: shutil.rmtree(f), "There is no folder IF-I"),
        (0, lambda f: (f / "unet" / "config.json").unlink(), "IF-I has no unet/config.json"),
        (0, lambda f: (f / "unet" / "config.json").write_text("{", "utf-8"), "cannot be read"),
        (0, lambda f: (f / "unet" / f"{UNET}.safetensors").unlink(), f"{UNET}.safetensors"),
        (0, pickled, "pickled checkpoint"),
        (0, lambda f: (f / "unet" / f"{UNET}.safetensors").write_bytes(b"x" * 40), "damaged|not a model"),
        (0, lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "no scheduler/scheduler_config.json"),
        (0, lambda f: (f / "text_encoder" / "model.safetensors").unlink(), "no weights in text_encoder/"),
        (0, lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer"),
        (0, other_width, "embeddings of width 24, but the UNet of IF-I takes 16"),
        (0, lambda f: edited(f, "unet/config.json", in_channels="3"), "does not say its channels"),
        (0, lambda f: edited(f, "unet/config.json", in_channels=4, out_channels=4), "takes 4 channels"),
        (0, lambda f: shutil.rmtree(f / "unet"), "holds IFPipeline without a UNet"),
        (0, lambda f: edited(f, "unet/config.json", sample_size="64"), "sample_size is '64'"),
        (0, lambda f: edited(f, "unet/config.json", encoder_hid_dim=[16, {}]), "encoder_hid_dim"),
        (0, lambda f: edited(f, "text_encoder/config.json", d_model=-1), "d_model is '-1'"),
        (0, lambda f: edited(f, SCHEDULER, num_train_timesteps=-1), "num_train_timesteps"),
        (0, lambda f: edited(f, SCHEDULER, prediction_type="flow"), "prediction_type is 'flow'"),
        (0, lambda f: edited(f, SCHEDULER, dynamic_thresholding_ratio="x"), "dynamic_thresholding_ratio"),
        (0, lambda f: edited(f, SCHEDULER, beta_schedule="none"), "no schedule can be made"),
        (0, lambda f: edited(f, SCHEDULER, trained_betas=[3.0] * 1000), "no noise schedule"),
        (1, lambda f: shutil.rmtree(f / "image_noising_scheduler"), "no image_noising_scheduler/scheduler_config.json"),
        (2, lambda f: shutil.rmtree(f / "text_encoder"), "no text_encoder/config.json"),
        (2, lambda f: edited(f, "unet/config.json", in_channels=4), "latent diffusion model such as Stable Diffusion"),
    ],
)
def test_half_a_folder_says_which_file_it_wants(
    folders: Folders, tmp_path: Path, number: int, spoil: Callable[[Path], Any], sentence: str
) -> None:
    folder = copied(folders, tmp_path, number)
    spoil(folder)
    with pytest.raises(CheckpointError, match=sentence):
        read_cascade([folder])


def test_a_folder_of_anything_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(CheckpointError, match="photos holds no stage of a cascade: it has no unet/config.json"):
        read_cascade([tmp_path / "photos"])


def test_the_wrong_order_and_the_same_stage_twice(folders: Folders) -> None:
    with pytest.raises(CheckpointError, match=r"wrong order: IF-II holds stage II .* Put IF-I first"):
        read_cascade([folders[1], folders[0]])
    with pytest.raises(CheckpointError, match="both hold stage I"):
        read_cascade([folders[0], folders[0]])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"block_out_channels": [8, 32]}, "has the shape"),
        ({"layers_per_block": 2}, "lack 'down_blocks"),
        ({"layers_per_block": 10**9}, "has 1000000000 layers"),
        ({"layers_per_block": [1, -1]}, "has -1 layers"),
        ({"act_fn": "nothing"}, "cannot be built"),
        ({"down_block_types": ["Nonsense", "Nonsense"]}, "cannot be built"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(
    folders: Folders, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = copied(folders, tmp_path)
    edited(folder, "unet/config.json", **changes)
    with pytest.raises(CheckpointError, match=sentence):
        load(read_stage(folder).unet, CPU, torch.float32)


def test_another_finetune_of_the_same_shape_has_another_digest(folders: Folders, tmp_path: Path) -> None:
    folder = copied(folders, tmp_path)
    before = read_stage(folder).unet.digest
    assert before == read_stage(folders[0]).unet.digest
    file = folder / "unet" / f"{UNET}.safetensors"
    tensors, _ = read_tensors(file)
    write_tensors(file, {name: tensor + 1 for name, tensor in tensors.items()})
    assert read_stage(folder).unet.digest != before
