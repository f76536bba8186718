"""Checkpoints load from both layouts to the same model, and what cannot be loaded is refused with a reason."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lib_methods.errors import CheckpointError
from standalone.engine.checkpoint import checkpoint_sha256, load_checkpoint
from standalone.engine.model import StableDiffusionModel
from standalone.engine.weights import sha256_of
from tests.standalone import tiny

Checkpoints = Callable[..., Path]
FAMILIES = ["sd1", "sd2", "sdxl"]


class Prompts(list[str]):
    """Prompts with a size, as SDXL wants them."""

    width, height, is_negative_prompt = 96, 64, False


def outputs(model: StableDiffusionModel) -> dict[str, torch.Tensor]:
    """What every part of the model makes of fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    cond = model.get_learned_conditioning(Prompts(["a red circle, on white"]))
    x = torch.randn(1, 4, 8, 8, generator=generator)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    full: dict[str, Any] = dict(cond) if isinstance(cond, dict) else {"c_crossattn": [cond]}
    channels = model.model.diffusion_model.config.in_channels
    full["c_concat"] = [torch.ones(1, channels - 4, 8, 8)]
    with torch.no_grad():
        found = {
            "text": cond["crossattn"] if isinstance(cond, dict) else cond,
            "unet": model.apply_model(x, torch.tensor([371.5]), full),
            "encoded": model.get_first_stage_encoding(model.encode_first_stage(image)),
            "decoded": model.decode_first_stage(x),
        }
    if isinstance(cond, dict):
        found["vector"] = cond["vector"]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_file_and_folder_give_the_same_model(checkpoints: Checkpoints, family: str) -> None:
    one, other = load_checkpoint(checkpoints(family)), load_checkpoint(checkpoints(family, folder=True))
    assert one.parameterization == other.parameterization == ("v" if family == "sd2" else "eps")
    assert (one.is_sd1, one.is_sd2, one.is_sdxl) == (other.is_sd1, other.is_sd2, other.is_sdxl)
    assert torch.equal(one.alphas_cumprod, other.alphas_cumprod)
    # the folder's text encoders keep their own number of heads, the file's yaml names the same
    expected, found = outputs(one), outputs(other)
    for name, value in expected.items():
        if family == "sdxl" and name in ("text", "vector", "unet"):
            continue  # SGM's yaml has no place for the heads of the text encoders, see the next test
        assert torch.allclose(value, found[name], atol=1e-5), name


def test_sdxl_conditioning_is_the_pipelines(checkpoints: Checkpoints) -> None:
    """Text, pooled text and sizes reach the UNet as in diffusers' own pipeline."""
    parts = tiny.build("sdxl")
    model = load_checkpoint(checkpoints("sdxl", folder=True))
    cond = model.get_learned_conditioning(Prompts(["a red circle"]))
    assert isinstance(cond, dict)
    tokens = [49406, *model.cond_stage_model.tokenize(["a red circle"])[0], 49407]
    states = []
    for text, pad in zip(parts.texts, (49407, 0)):
        ids = torch.tensor([tokens + [pad] * (77 - len(tokens))])
        with torch.no_grad():
            states.append(text(input_ids=ids, output_hidden_states=True))
    context = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
    assert torch.allclose(cond["crossattn"], context, atol=1e-5)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    added = {"text_embeds": states[1].text_embeds, "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96]])}
    with torch.no_grad():
        expected = parts.unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added).sample
        assert torch.allclose(model.apply_model(x, t, cond), expected, atol=1e-5)


def test_an_empty_negative_prompt_of_sdxl_is_zeros(checkpoints: Checkpoints) -> None:
    model = load_checkpoint(checkpoints("sdxl"))
    prompts = Prompts([""])
    prompts.is_negative_prompt = True
    cond = model.get_learned_conditioning(prompts)
    assert isinstance(cond, dict)
    assert cond["crossattn"].abs().max() == 0
    assert cond["vector"][:, : tiny.POOLED].abs().max() == 0
    assert cond["vector"][:, tiny.POOLED :].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_read_from_the_weights_when_there_is_no_yaml(tmp_path: Path, family: str) -> None:
    path = tiny.write_file(tiny.build(family), tmp_path / "model.safetensors", with_yaml=False)
    config = load_checkpoint(path).model.diffusion_model.config
    assert tuple(config.block_out_channels) == (32, 64)
    assert config.layers_per_block == 1
    assert config.cross_attention_dim == (64 if family == "sdxl" else 32)


def test_text_weights_without_the_infix_load_too(tmp_path: Path) -> None:
    model = tiny.build("sd1")
    new = load_checkpoint(tiny.write_file(model, tmp_path / "new.safetensors"))
    old = load_checkpoint(tiny.write_file(model, tmp_path / "old.safetensors", old_text_names=True))
    assert torch.equal(outputs(new)["text"], outputs(old)["text"])


@pytest.mark.parametrize("v", [True, False])
def test_an_sd2_unet_without_yaml_is_asked_what_it_predicts(tmp_path: Path, v: bool) -> None:
    model = tiny.build("sd2")
    with torch.no_grad():
        # at the last step an eps model returns about its input, a v model something far below
        model.unet.conv_out.weight.zero_()
        model.unet.conv_out.bias.fill_(-1.5 if v else 0.5)
    path = tiny.write_file(model, tmp_path / "model.safetensors", with_yaml=False)
    assert load_checkpoint(path).parameterization == ("v" if v else "eps")


@pytest.mark.parametrize(("channels", "key"), [(4, "crossattn"), (8, "hybrid"), (9, "hybrid")])
def test_channels_say_what_the_unet_sees_besides(checkpoints: Checkpoints, channels: int, key: str) -> None:
    model = load_checkpoint(checkpoints("sd1", in_channels=channels))
    assert model.model.conditioning_key == key
    assert model.cond_stage_key == ("edit" if channels == 8 else "txt")
    assert outputs(model)["unet"].shape == (1, 4, 8, 8)


def test_half_precision_files_load(tmp_path: Path) -> None:
    path = tiny.write_file(tiny.build("sd1"), tmp_path / "half.safetensors", half=True)
    model = load_checkpoint(path)
    assert model.dtype == torch.float32
    assert outputs(model)["unet"].dtype == torch.float32
    assert load_checkpoint(path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_scale_factor_comes_from_the_yaml(tmp_path: Path) -> None:
    model = tiny.build("sd1")
    model.scale_factor = 0.5
    loaded = load_checkpoint(tiny.write_file(model, tmp_path / "model.safetensors"))
    image = torch.zeros(1, 3, 64, 64)
    encoded = loaded.encode_first_stage(image)
    assert not isinstance(encoded, torch.Tensor)
    assert torch.equal(loaded.get_first_stage_encoding(encoded), encoded.mode() * 0.5)


def test_the_hash_is_that_of_the_file(checkpoints: Checkpoints) -> None:
    assert checkpoint_sha256(checkpoints("sd1")) == sha256_of(checkpoints("sd1"))
    folder = checkpoints("sd1", folder=True)
    assert checkpoint_sha256(folder) == sha256_of(folder / "unet" / "diffusion_pytorch_model.safetensors")


# -- refusals


class Trap:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "renamed.safetensors"])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "opened"
    (tmp_path / name).write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(CheckpointError, match=r"pickled.*safetensors"):
        load_checkpoint(tmp_path / name)
    torch.save({"a": Trap(mark)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="pickled"):
        load_checkpoint(tmp_path / name)
    assert not mark.exists()


def test_a_folder_with_pickled_weights_is_refused(tmp_path: Path, checkpoints: Checkpoints) -> None:
    folder = tiny.write_folder(tiny.build("sd1"), tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickled"):
        load_checkpoint(folder)


def broken(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A checkpoint whose weights were changed."""
    state = load_file(tiny.write_file(tiny.build("sd1"), tmp_path / "model.safetensors"))
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


REFUSED = {
    "a LoRA": (lambda s: (s.clear(), s.update({"lora_up.weight": torch.zeros(2)})), "LoRA"),
    "no VAE": (lambda s: [s.pop(k) for k in list(s) if k.startswith("first_stage")], "no VAE"),
    "no text encoder": (lambda s: [s.pop(k) for k in list(s) if k.startswith("cond_stage")], "text encoder"),
    "a missing weight": (lambda s: s.pop("model.diffusion_model.time_embed.0.weight"), "1 weights are missing"),
    "SD3": (lambda s: s.update({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}), "Stable Diffusion 3"),
    "a short vocabulary": (
        lambda s: s.update(
            {(k := "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"): s[k][:99].clone()}
        ),
        "99 tokens",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    change, reason = REFUSED[what]
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(broken(tmp_path, change))
    assert str(tmp_path) not in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tiny.write_file(tiny.build("sd1"), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="incomplete"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint named nothing"):
        load_checkpoint(tmp_path / "nothing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a diffusers checkpoint"):
        load_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "model: 5", "\x80"])
def test_a_bad_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tiny.write_file(tiny.build("sd1"), tmp_path / "model.safetensors")
    path.with_suffix(".yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="yaml|configuration"):
        load_checkpoint(path)


def test_a_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tiny.write_file(tiny.build("sd1"), tmp_path / "model.safetensors")
    path.with_suffix(".yaml").write_text("model: !!python/object/apply:os.system ['exit 1']", encoding="utf-8")
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny.build("sd1")
    config = tiny.ldm_yaml(model)
    config["model"]["params"]["unet_config"]["params"]["num_heads"] = 5
    path = tiny.write_file(model, tmp_path / "model.safetensors")
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="5 heads"):
        load_checkpoint(path)
