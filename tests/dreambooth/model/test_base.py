"""The model as its header tells of it, before anything is loaded."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_methods.checkpoints.ldm_names import UNET_PREFIX
from lib_methods.dreambooth.model import base as header_sizes
from lib_methods.dreambooth.model.base import read_base
from lib_methods.dreambooth.model.lora import places
from lib_methods.dreambooth.training.duration import multiply_adds
from lib_methods.errors import UserError
from standalone import ROOT
from standalone.dreambooth import EngineModel, load_training_model
from tests.dreambooth.models import FAMILIES, sizes_of, write
from tests.standalone import tiny

SHAPES = ROOT / "models" / "shapes" / "shapes.safetensors"


def rank_one(model: EngineModel, **where: bool) -> int:
    shapes = [place.base.weight.shape for place in places(model, **where)]
    return sum(shape[0] + shape[1:].numel() for shape in shapes)


def compare(path: Path) -> header_sizes.BaseModel:
    """Holds the header's numbers against the loaded model's; returns the former."""
    model, base = load_training_model(path), read_base(path)
    assert base.sizes == sizes_of(model)
    attention, more = rank_one(model), rank_one(model, convolutions=True)
    assert (base.sizes.lora, base.sizes.lora_convolutions) == (attention, more - attention)
    assert base.sizes.lora_text == rank_one(model, text=True) - attention
    assert sorted(base.unet_shapes.values()) == sorted(tuple(weight.shape) for weight in model.unet.parameters())
    return base


@pytest.mark.parametrize("diffusers", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(("family", "parameterization"), [*((name, None) for name in FAMILIES), ("sd2", "eps")])
def test_every_field_is_the_loaded_models(
    tmp_path: Path, family: str, parameterization: str | None, diffusers: bool
) -> None:
    base = compare(write(tmp_path, family, diffusers=diffusers, parameterization=parameterization))
    assert base.sizes.family == family and not base.guessed


def test_file_and_folder_of_a_model_take_the_same_work(tmp_path: Path) -> None:
    for family in FAMILIES:
        file, folder = (read_base(write(tmp_path, family, diffusers=diffusers)) for diffusers in (False, True))
        assert file.unet_shapes == folder.unet_shapes
        assert file.sizes == replace(folder.sizes, resolution=file.sizes.resolution)
        if family != "sd2":  # whose files have a layer more, which conditions nothing
            assert folder.size == file.size


def test_the_shipped_model_and_older_names_are_read(tmp_path: Path) -> None:
    compare(SHAPES)
    compare(tiny.write_file(tiny.build("sd1"), tmp_path / "old.safetensors", old_text_names=True))


def test_the_work_is_what_the_layers_do(tmp_path: Path) -> None:
    """Against a count of the products that a pass of the module runs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for family in FAMILIES:
        path = write(tmp_path, family)
        model, base = load_training_model(path), read_base(path)
        text = model.embed(["a dog"])
        for side in (8, 16):
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model.predict(torch.zeros(1, 4, side, side), torch.tensor([5]), text)
            counted = 2 * multiply_adds(base.unet_shapes, side, side)
            assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_without_a_yaml_sd2s_resolution_is_a_guess(tmp_path: Path) -> None:
    path = tiny.write_file(tiny.build("sd2"), tmp_path / "v2.safetensors", with_yaml=False)
    base = read_base(path)
    assert base.guessed and base.sizes.resolution == 768
    state = {**load_file(path), "v_pred": torch.empty(0)}
    save_file(state, path)
    assert not read_base(path).guessed, "a file that has changed is read again"


def test_moving_averages_and_what_else_is_there_count_in_the_files_size(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = read_base(path)
    average, other = torch.zeros(10), torch.zeros(5, dtype=torch.float16)
    save_file({**load_file(path), "model_ema.diffusion_modelout2weight": average, "other": other}, path)
    after = read_base(path)
    assert (after.size - before.size, after.unet.count - before.unet.count) == (50, 10)
    assert after.sizes == before.sizes


def test_a_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = write(tmp_path), []
    real = header_sizes.checked_base

    def counted(*args: Any) -> Any:
        asked.append(args)
        return real(*args)

    monkeypatch.setattr(header_sizes, "checked_base", counted)
    for _ in range(3):
        read_base(path)
    assert len(asked) == 1


def _raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_file_that_is_no_base_model_is_a_sentence(tmp_path: Path) -> None:
    good = write(tmp_path)
    whole = good.read_bytes()
    cut, half = tmp_path / "cut.safetensors", tmp_path / "half.safetensors"
    cut.write_bytes(whole[:-100])
    half.write_bytes(whole[:500])
    pickled, hidden = tmp_path / "old.ckpt", tmp_path / "hidden.safetensors"
    pickled.write_bytes(b"PK\x03\x04 more")
    hidden.write_bytes(b"\x80\x02}q\x00(X more than nine bytes")
    lora, empty = tmp_path / "lora.safetensors", tmp_path / "empty.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, lora)
    empty.write_bytes(b"")
    (tmp_path / "picture.png").write_bytes(b"some bytes")
    state = load_file(good)
    no_vae, no_text, partial = (tmp_path / f"{name}.safetensors" for name in ("no_vae", "no_text", "partial"))
    save_file({k: v for k, v in state.items() if not k.startswith("first_stage")}, no_vae)
    save_file({k: v for k, v in state.items() if not k.startswith("cond_stage")}, no_text)
    save_file({k: v for k, v in state.items() if "input_blocks.0" not in k}, partial)
    (tmp_path / "folder").mkdir()
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for path, said in (
        (tmp_path / "gone.safetensors", "There is no base model"),
        (cut, "incomplete: 100 bytes"),
        (half, "incomplete: "),
        (empty, "is empty"),
        (pickled, "pickled"),
        (hidden, "pickled"),
        (tmp_path / "picture.png", "not a .safetensors file"),
        (lora, "This is a LoRA"),
        (no_vae, "no VAE"),
        (no_text, "no text encoder"),
        (partial, "incomplete"),
        (tmp_path / "folder", "not a diffusers checkpoint"),
        (_raw(tmp_path / "a.safetensors", b"{nonsense"), "damaged"),
        (_raw(tmp_path / "b.safetensors", b"{" * 5000 + b"}" * 5000), "damaged"),
        (_raw(tmp_path / "c.safetensors", {"x": {**entry, "data_offsets": [8, 0]}}), "damaged"),
        (_raw(tmp_path / "d.safetensors", {"x": {**entry, "shape": [-2]}}, b"12345678"), "damaged"),
        (_raw(tmp_path / "e.safetensors", {"x": 5}), "damaged"),
        (_raw(tmp_path / "g.safetensors", {"x": {**entry, "shape": [float("inf")]}}, b"12345678"), "damaged"),
        (_raw(tmp_path / "f.safetensors", {f"{UNET_PREFIX}joint_blocks.0.x": entry}, b"12345678"), "Diffusion 3"),
        (write(tmp_path, "sd2", in_channels=9), "inpainting checkpoint (9 input channels)"),
        (write(tmp_path, "sdxl", diffusers=True, in_channels=8), "InstructPix2Pix"),
    ):
        with pytest.raises(UserError) as refused:
            read_base(path)
        assert said in str(refused.value), path.name
        assert str(tmp_path) not in str(refused.value)


def test_what_the_loader_refuses_for_its_input_is_refused_alike(tmp_path: Path) -> None:
    path = write(tmp_path, in_channels=9)
    with pytest.raises(UserError) as header:
        read_base(path)
    with pytest.raises(UserError) as loader:
        load_training_model(path)
    assert str(header.value) == str(loader.value)
