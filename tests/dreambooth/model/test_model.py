"""The model, loaded or told by its header alone."""

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
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.training.duration import count_work
from lib_methods.errors import UserError
from standalone import ROOT
from standalone.dreambooth import EngineModel, load_training_model
from standalone.engine.checkpoint import load_checkpoint
from tests.dreambooth.models import FAMILIES, load, noisy, prediction, sizes_of, write
from tests.standalone import tiny


class Sized(list[str]):
    """Prompts with a size, as the engine's SDXL wants them."""

    width = height = 64


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_files_names_shapes_and_values(tmp_path: Path, family: str) -> None:
    path = write(tmp_path, family)
    model: TrainingModel = load_training_model(path)
    source, weights = load_file(str(path)), model.file_weights()
    assert all(torch.equal(source[name], value) for name, value in weights.items())
    left = {name for name in source if name not in weights and not name.startswith("first_stage_model.")}
    # the layer of SD2's text encoder that conditions nothing
    assert all("resblocks.2." in name or name.endswith("text_projection") for name in left)
    assert bool(left) == (family == "sd2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folders_weights_have_the_same_names(tmp_path: Path, family: str) -> None:
    file, folder = load(tmp_path, family), load(tmp_path, family, diffusers=True)
    one, other = file.file_weights(), folder.file_weights()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_predicts_what_the_host_predicts(tmp_path: Path, family: str) -> None:
    path = write(tmp_path, family)
    host = load_checkpoint(path)
    latents, timesteps = noisy()
    cond: Any = host.get_learned_conditioning(Sized(["a ohwx dog"]))
    with torch.no_grad():
        expected = host.apply_model(latents, timesteps, cond if isinstance(cond, dict) else {"c_crossattn": [cond]})
    assert torch.equal(prediction(load_training_model(path)), expected)


def test_sdxl_is_told_the_sizes_it_is_given(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    latents, timesteps = noisy(batch=2)
    text = model.embed(["a dog", "a cat"])
    own = torch.tensor([[64, 64, 0, 0, 64, 64]])
    cropped = torch.tensor([[64, 64, 0, 0, 64, 64], [900, 600, 0, 40, 64, 64]])
    with torch.no_grad():
        plain = model.predict(latents, timesteps, text)
        assert torch.equal(model.predict(latents, timesteps, text, own.expand(2, -1)), plain)
        other = model.predict(latents, timesteps, text, cropped)
    assert torch.allclose(other[0], plain[0], atol=1e-6)
    assert not torch.allclose(other[1], plain[1], atol=1e-3)


def test_text_is_plain(tmp_path: Path) -> None:
    """Signs of emphasis are letters like all others, as the caption has them."""
    model = load(tmp_path)
    assert not torch.equal(model.embed(["a (dog:1.5)"]).hidden, model.embed(["a dog"]).hidden)
    tokens, words = model.tokens("a (dog"), model.token_words()
    assert tokens[0] == words["a</w>"] and tokens[-1] == words["dog</w>"] and len(tokens) == 3
    assert model.tokens("ohwx") == [words["ohwx</w>"]]


def test_gradients_reach_unet_and_text_encoder_only_when_asked(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    latents, timesteps = noisy()
    assert not model.embed(["a dog"]).hidden.requires_grad
    for encoder in model.encoders:
        encoder.requires_grad_(True)
    model.unet.requires_grad_(True)
    model.predict(latents, timesteps, model.embed(["a dog"])).square().mean().backward()
    weights = [*model.unet.parameters(), *model.encoders[1].parameters()]
    assert sum(w.grad is not None and bool(w.grad.abs().sum() > 0) for w in weights) > len(weights) / 2
    assert all(w.grad is None for w in model.vae.parameters())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_pictures_come_back_from_their_latents(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    pixels = torch.rand(2, 3, 64, 48) * 2 - 1
    mean, std = model.moments(pixels)
    assert mean.shape == std.shape == (2, model.latent_channels, 8, 6)
    assert bool((std > 0).all())
    with torch.no_grad():
        vae: Any = model.vae
        expected = vae.encode(pixels).latent_dist
        factor = 0.13025 if family == "sdxl" else 0.18215
        assert torch.allclose(mean, expected.mean * factor) and torch.allclose(std, expected.std * factor)
        assert torch.allclose(model.decode(mean), vae.decode(expected.mean).sample.clamp(-1, 1), atol=1e-5)


def test_a_vae_that_overflows_in_half_precision_is_asked_again_in_full(tmp_path: Path) -> None:
    model = load(tmp_path, "sdxl")
    pixels = torch.rand(1, 3, 16, 16)
    mean, std = model.moments(pixels)
    vae: Any = model.vae
    run, halves = vae.encoder.forward, []

    def overflowing(x: torch.Tensor) -> torch.Tensor:
        halves.append(x.dtype)
        return torch.full_like(run(x), float("nan")) if x.dtype == torch.bfloat16 else run(x)

    vae.to(torch.bfloat16)
    vae.encoder.forward = overflowing
    found, _ = model.moments(pixels)
    assert halves == [torch.bfloat16, torch.float32]
    assert torch.allclose(found, mean, atol=0.1)


def test_what_a_file_says_about_its_noise(tmp_path: Path) -> None:
    path = write(tmp_path, "sd2", parameterization="eps")
    plain = load_training_model(path)
    assert (plain.parameterization, plain.zero_terminal_snr, plain.resolution) == ("eps", False, 512)
    marked = {**load_file(str(path)), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    save_file(marked, str(tmp_path / "marked.safetensors"))
    model = load_training_model(tmp_path / "marked.safetensors")
    assert (model.parameterization, model.zero_terminal_snr, model.resolution) == ("v", True, 768)
    assert model.alphas_cumprod[-1] == 0 and model.alphas_cumprod.dtype == torch.float32
    assert 0 < model.model.alphas_cumprod[-1] < 1e-7, "samplers divide by it"


def test_what_a_folder_says_about_its_noise(tmp_path: Path) -> None:
    path = write(tmp_path, "sd2", diffusers=True)
    assert not load_training_model(path).zero_terminal_snr
    settings = path / "scheduler" / "scheduler_config.json"
    told = {**json.loads(settings.read_text(encoding="utf-8")), "rescale_betas_zero_snr": True}
    settings.write_text(json.dumps(told), encoding="utf-8")
    model = load_training_model(path)
    assert model.zero_terminal_snr and model.parameterization == "v"
    assert (model.name, model.resolution) == ("sd2-folder", 64)


def test_the_shipped_model_knows_its_size() -> None:
    shapes = ROOT / "models" / "shapes" / "shapes.safetensors"
    model = load_training_model(shapes)
    assert (model.name, model.family, model.resolution) == ("shapes", "sd1", 64)
    assert len(model.sha256) == 64


@pytest.mark.parametrize(
    ("channels", "kind"), [(8, "an InstructPix2Pix"), (9, "an inpainting")], ids=["instruct", "inpainting"]
)
def test_a_model_that_sees_pictures_is_refused(tmp_path: Path, channels: int, kind: str) -> None:
    with pytest.raises(UserError, match=f"is {kind} checkpoint"):
        load(tmp_path, in_channels=channels)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.x"], "Flux"),
        (["model.diffusion_model.x", "conditioner.embedders.0.model.x"], "refiner"),
        (["lora_unet_mid_block.lora_up.weight"], "LoRA"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path: Path, keys: list[str], reason: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, str(path))
    with pytest.raises(UserError, match=reason):
        load_training_model(path)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"\x80\x02pickle"])
def test_what_is_no_checkpoint_is_refused_without_its_folder(tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "broken.safetensors", tmp_path / "old.ckpt"):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_training_model(path)
        assert path.name in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_base_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no base model gone\.safetensors"):
        load_training_model(tmp_path / "gone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a diffusers checkpoint"):
        load_training_model(tmp_path / "empty")


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
    assert count_work(base.unet_shapes).layers == sum(weight.dim() > 1 for weight in model.unet.parameters())
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
            counted = 2 * count_work(base.unet_shapes).multiply_adds(side, side)
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
