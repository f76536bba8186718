"""A full result is the source with the trained weights in it, and nothing else has changed by a bit."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib_methods import safetensors as tensor_files
from lib_methods.device import DTYPES
from lib_methods.dreambooth.output.result import save_checkpoint
from lib_methods.errors import UserError
from standalone.dreambooth import EngineModel, load_training_model
from tests.dreambooth.models import FAMILIES, prediction, write
from tests.standalone import tiny

UNET = "model.diffusion_model."


def train(module: nn.Module, seed: int = 1) -> None:
    """Moves every weight, by less than half precision would swallow."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight), alpha=0.05)


def raw(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor, read by hand."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {name: (look["dtype"], look["shape"], body[slice(*look["data_offsets"])]) for name, look in header.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_loads_and_draws_as_the_trained_model(tmp_path: Path, family: str) -> None:
    source = write(tmp_path, family)
    model = load_training_model(source)
    before = prediction(model)
    for module in (model.unet, *model.encoders):
        train(module)
    out = tmp_path / "out" / "result.safetensors"
    save_checkpoint(out, source, model, "fp32")
    again = load_training_model(out)
    assert torch.equal(prediction(again), prediction(model))
    assert not torch.allclose(prediction(again), before, atol=1e-2)
    marks = {"v_pred"} if family == "sd2" else set()
    assert load_file(str(out)).keys() == load_file(str(source)).keys() | marks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_becomes_one_file_that_draws_the_same(tmp_path: Path, family: str) -> None:
    source = write(tmp_path, family, diffusers=True)
    model = load_training_model(source)
    train(model.unet)
    out = tmp_path / "result.safetensors"
    save_checkpoint(out, source, model, "fp32")
    if family != "sdxl":  # the heads of a tiny model are not the published ones; shapes do not show them
        text = yaml.safe_dump(tiny.ldm_yaml(tiny.build(family)))
        out.with_suffix(".yaml").write_text(text, encoding="utf-8")
    again = load_training_model(out)
    weights, expected = again.file_weights(), model.file_weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert (again.family, again.parameterization) == (model.family, model.parameterization)
    if family != "sdxl":
        assert torch.allclose(prediction(again), prediction(model), atol=1e-5)
    # every name of a published file is there; SD2's projection is not used
    wanted = set(tiny.ldm_state(tiny.build(family))) - {"cond_stage_model.model.text_projection"}
    assert wanted <= set(load_file(str(out)))
    vae: Any = again.vae
    assert all(torch.equal(value, model.vae.state_dict()[key]) for key, value in vae.state_dict().items())


def test_a_folder_that_predicts_v_down_to_no_signal_says_so_in_the_file(tmp_path: Path) -> None:
    source = write(tmp_path, "sd1", diffusers=True, parameterization="v")
    scheduler = source / "scheduler" / "scheduler_config.json"
    told = json.loads(scheduler.read_text(encoding="utf-8"))
    scheduler.write_text(json.dumps({**told, "rescale_betas_zero_snr": True}), encoding="utf-8")
    save_checkpoint(tmp_path / "result.safetensors", source, load_training_model(source))
    again = load_training_model(tmp_path / "result.safetensors")
    assert (again.parameterization, again.zero_terminal_snr) == ("v", True)


def odd_source(folder: Path) -> Path:
    """A source with everything that a file may hold besides: other precisions, unknown keys, buffers, metadata."""
    path = write(folder)
    state = load_file(str(path))
    halves = {
        name: value.half() if name.startswith("first_stage_model.") else value.bfloat16() if "attn2" in name else value
        for name, value in state.items()
    }
    halves["betas"] = torch.linspace(0, 1, 1000, dtype=torch.float64)
    halves["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    halves["somebody.elses.key"] = torch.tensor([1, 2, 255], dtype=torch.uint8)
    halves["empty"] = torch.empty(0)
    save_file(halves, str(path), metadata={"modelspec.title": "old", "modelspec.hash_sha256": "0x1", "made.by": "me"})
    return path


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved_as", ["fp16", "bf16", "fp32", "source"])
def test_what_was_not_trained_keeps_every_bit(tmp_path: Path, saved_as: str, loaded: torch.dtype) -> None:
    source = odd_source(tmp_path)
    model = load_training_model(source, dtype=loaded)
    train(model.unet)
    out = tmp_path / "result.safetensors"
    save_checkpoint(out, source, model, saved_as)
    before, after = raw(source), raw(out)
    assert before.keys() == after.keys()
    trained = {name for name in before if before[name] != after[name]}
    assert trained == {name for name in before if name.startswith(UNET)}
    values, own = load_file(str(out)), load_file(str(source))
    for name, weight in model.file_weights().items():
        if name in trained:
            dtype = own[name].dtype if saved_as == "source" else DTYPES[saved_as]
            assert torch.equal(values[name], weight.to(dtype)), name
    with safe_open(str(out), framework="pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.title": "result", "made.by": "me"}


def test_a_training_that_moved_nothing_gives_the_source(tmp_path: Path) -> None:
    source = odd_source(tmp_path)
    save_checkpoint(tmp_path / "result.safetensors", source, load_training_model(source, dtype=torch.float16), "bf16")
    assert raw(tmp_path / "result.safetensors") == raw(source)


def test_one_trained_layer_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    source = odd_source(tmp_path)
    model = load_training_model(source)
    with torch.no_grad():
        model.unet.get_parameter("conv_out.bias").add_(1)
    save_checkpoint(tmp_path / "result.safetensors", source, model, "fp32")
    before, after = raw(source), raw(tmp_path / "result.safetensors")
    assert [name for name in before if before[name] != after[name]] == [f"{UNET}out.2.bias"]


def test_moving_averages_of_the_source_become_the_trained_weights(tmp_path: Path) -> None:
    source = write(tmp_path)
    state = load_file(str(source))
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value * 2
        for name, value in state.items()
        if name.startswith(UNET)
    }
    save_file({**state, **averages, "model_ema.decay": torch.tensor(0.9999)}, str(source))
    model = load_training_model(source)
    with torch.no_grad():
        model.unet.get_parameter("conv_out.bias").add_(1)
    out = tmp_path / "result.safetensors"
    save_checkpoint(out, source, model, "fp32")
    found = load_file(str(out))
    assert torch.equal(found["model_ema.diffusion_modelout2bias"], found[f"{UNET}out.2.bias"])
    before, after = raw(source), raw(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{UNET}out.2.bias", "model_ema.diffusion_modelout2bias"}


def test_old_names_of_the_text_encoder_become_the_nested_ones(tmp_path: Path) -> None:
    built = tiny.build("sd1")
    source = tiny.write_file(built, tmp_path / "old.safetensors", old_text_names=True)
    model = load_training_model(source)
    train(model.encoders[0])
    out = tmp_path / "result.safetensors"
    save_checkpoint(out, source, model, "fp32")
    assert load_file(str(out)).keys() == tiny.ldm_state(built).keys()
    assert torch.equal(prediction(load_training_model(out)), prediction(model))


def test_the_yaml_comes_along(tmp_path: Path) -> None:
    source = write(tmp_path)
    save_checkpoint(tmp_path / "a.b result.safetensors", source, load_training_model(source))
    assert (tmp_path / "a.b result.yaml").read_bytes() == source.with_suffix(".yaml").read_bytes()


# -- trouble


@pytest.fixture
def trained(tmp_path: Path) -> tuple[EngineModel, Path, Path]:
    """A trained model, its source, and a result of an earlier training in the place of the new one."""
    source = write(tmp_path)
    model = load_training_model(source)
    train(model.unet)
    out = tmp_path / "results" / "result.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"the last good one")
    return model, source, out


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def refuse(match: str, trained: tuple[EngineModel, Path, Path], saved_as: str = "fp16") -> None:
    model, source, out = trained
    with pytest.raises(UserError, match=match) as caught:
        save_checkpoint(out, source, model, saved_as)
    assert str(source.parent) not in str(caught.value)
    assert out.read_bytes() == b"the last good one"
    assert [name for name in left(out) if not name.endswith(".yaml")] == ["result.safetensors"]


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_destroys_nothing(
    trained: tuple[EngineModel, Path, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(os, moment, full_disk)
    refuse("cannot be written. The disk is full", trained)


def test_a_disk_that_fills_while_writing_destroys_nothing(
    trained: tuple[EngineModel, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = tensor_files._bytes_of

    def filling(tensor: Tensor) -> memoryview:
        written.append(tensor.numel())
        if len(written) > 20:
            full_disk()
        return real(tensor)

    monkeypatch.setattr(tensor_files, "_bytes_of", filling)
    refuse("The disk is full", trained)
    assert len(written) == 21


def test_a_disk_that_is_too_small_is_said_before(
    trained: tuple[EngineModel, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(tensor_files.shutil, "disk_usage", lambda path: Usage)
    refuse("GiB left", trained)


def test_weights_that_are_not_finite_are_not_written(trained: tuple[EngineModel, Path, Path]) -> None:
    with torch.no_grad():
        trained[0].unet.get_parameter("conv_in.weight")[0, 0, 0, 0] = float("nan")
    refuse("not finite", trained)


def test_weights_too_large_for_half_precision_are_not_cut(trained: tuple[EngineModel, Path, Path]) -> None:
    with torch.no_grad():
        trained[0].unet.get_parameter("conv_in.weight")[0, 0, 0, 0] = 1e5
    refuse("too large for fp16", trained)
    save_checkpoint(trained[2], trained[1], trained[0], "bf16")


@pytest.mark.parametrize("what", ["gone", "another", "smaller", "damaged"])
def test_a_source_that_changed_meanwhile_is_said(trained: tuple[EngineModel, Path, Path], what: str) -> None:
    source = trained[1]
    state = load_file(str(source))
    if what == "gone":
        source.unlink()
    elif what == "another":
        save_file({"model.diffusion_model.x": torch.zeros(1)}, str(source))
    elif what == "smaller":
        save_file({**state, f"{UNET}out.2.bias": torch.zeros(3)}, str(source))
    else:
        source.write_bytes(source.read_bytes()[:5000])
    words = {"gone": "no longer exists", "another": "is missing", "smaller": "another size", "damaged": "is incomplete"}
    refuse(words[what], trained)


def test_the_base_is_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path)
    before = source.read_bytes()
    with pytest.raises(UserError, match="base model itself"):
        save_checkpoint(source, source, load_training_model(source))
    assert source.read_bytes() == before


def test_progress_counts_the_tensors(tmp_path: Path) -> None:
    source = write(tmp_path)
    seen: list[tuple[int, int]] = []
    note: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    save_checkpoint(tmp_path / "result.safetensors", source, load_training_model(source), progress=note)
    total = len(load_file(str(source)))
    assert seen == [(done, total) for done in range(1, total + 1)]
