"""LoRAs that cannot be used: the job continues without, and a sentence says why. Which of the others are listed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from tests.standalone.conftest import Running
from tests.standalone.loras import State, layer, write

GOOD = layer("lora_unet_conv_in", (32, 4, 3, 3), 1)


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1", levels=1), extension_dirs=[])


@pytest.fixture
def folder(host: Running) -> Iterator[Path]:
    """The folder of LoRAs, with one that is good; afterwards empty again."""
    path = Path(host.host.data_dir) / "models" / "Lora"
    write(path / "good.safetensors", GOOD)
    yield path
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


@pytest.fixture
def plain(host: Running) -> bytes:
    return bytes(host.generate(prompt="a circle").images[0].tobytes())


class Program:
    """Unpickled, it would end the tests."""

    def __reduce__(self) -> Any:
        return (SystemExit, ("a pickle was opened",))


def refused(host: Running, tag: str, plain: bytes) -> str:
    """The sentence about a tag that changes nothing; the same in the comments and in the infotext."""
    from modules import infotext_utils

    result = host.generate(prompt=f"a circle{tag}")
    assert result.images[0].tobytes() == plain
    assert host.host.model.loaded_networks == ()
    sentence = str(result.comments).strip()
    assert infotext_utils.parse_generation_parameters(result.infotexts[0])["LoRA error"] == sentence
    assert "Lora hashes" not in result.infotexts[0]
    assert str(host.host.data_dir) not in result.infotexts[0] + sentence
    return sentence


UNKNOWN = [
    "nobody",
    "../good",
    "./good",
    "sub/../good",
    "/etc/passwd",
    "",
    "x" * 3000,
    "\x00",
]


@pytest.mark.parametrize("name", UNKNOWN, ids=lambda name: repr(name[:20]))
def test_a_name_that_is_not_there(host: Running, folder: Path, plain: bytes, name: str) -> None:
    sentence = refused(host, f"<lora:{name}:1>", plain)
    assert sentence.startswith("LoRA ") and "there is no" in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize(
    "tag", ["<lora:te=1>", "<lora:good:much>", "<lora:good:nan>", "<lora:good:1:inf>", "<lora:good:1:1:x>"]
)
def test_a_tag_that_makes_no_sense(host: Running, folder: Path, plain: bytes, tag: str) -> None:
    assert "was left out" in refused(host, tag, plain)


@pytest.mark.parametrize("name", ["evil.pt", "evil.ckpt", "evil.safetensors"])
def test_pickles_are_not_opened(host: Running, folder: Path, plain: bytes, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Program()))
    assert "can run any code" in refused(host, "<lora:evil:1>", plain)


def large(state: State) -> State:
    return {key: value * 1e30 if "weight" in key else value for key, value in state.items()}


SIZE = "none of its 1 layers can be used with this checkpoint: made for another size ('lora_unet_conv_in')"
UNUSABLE: dict[str, tuple[State, str]] = {
    "another model": (
        layer("lora_unet_input_blocks_8_1_proj_in", (64, 64), 1),
        "not in this model ('lora_unet_input_blocks_8_1_proj_in')",
    ),
    "another size": (layer("lora_unet_conv_in", (320, 4, 3, 3), 1), SIZE),
    "another rank in each half": (
        {**GOOD, "lora_unet_conv_in.lora_up.weight": torch.ones(32, 3, 1, 1)},
        "halves of different ranks",
    ),
    "numbers without end": (large(GOOD), "NaN or infinite values"),
    "not a number": ({key: value * float("nan") for key, value in GOOD.items()}, "NaN or infinite values"),
    "half of a layer": ({"lora_unet_conv_in.lora_up.weight": torch.ones(32, 2, 1, 1)}, "incomplete (parts: up)"),
    "unknown": ({"lora_unet_conv_in.q_layer.weight": torch.ones(2, 2)}, "unknown kind or incomplete (parts: q_layer"),
    "scaled fp8": ({**GOOD, "lora_unet_conv_in.lora_up.scale_weight": torch.ones(1)}, "stored as scaled fp8"),
    "int8": ({key: value.to(torch.int8) for key, value in GOOD.items()}, "stored as I8 numbers"),
    "a VAE": ({"first_stage_model.decoder.conv_in.weight": torch.ones(2)}, "is a checkpoint, not a LoRA"),
    "an embedding": ({"emb_params": torch.ones(1, 32)}, "is a textual inversion embedding, not a LoRA"),
    "an SDXL embedding": ({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}, "textual inversion embedding"),
    "a model": ({"down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}, "is a model or a part of one, not a LoRA"),
    "nothing": ({}, "holds no LoRA that we know"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_of_no_use(host: Running, folder: Path, plain: bytes, name: str) -> None:
    state, reason = UNUSABLE[name]
    write(folder / "odd.safetensors", state)
    sentence = refused(host, "<lora:odd:1>", plain)
    assert reason in sentence
    assert sentence.count("odd") <= 2


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD2"),
        ({"ss_v2": "True"}, "SD2"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
    ],
    ids=lambda value: str(value),
)
def test_one_of_another_family(
    host: Running, folder: Path, plain: bytes, metadata: dict[str, str], family: str
) -> None:
    write(folder / "odd.safetensors", GOOD, metadata)
    assert f"made for {family}, and the checkpoint is of the SD1 family" in refused(host, "<lora:odd:1>", plain)


@pytest.mark.parametrize(("kept", "said"), [(0, "is empty"), (7, "is damaged"), (20, "incomplete"), (-1, "incomplete")])
def test_a_file_that_is_cut_off(host: Running, folder: Path, plain: bytes, kept: int, said: str) -> None:
    data = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(data[:kept])
    assert said in refused(host, "<lora:cut:1>", plain)


def test_the_layers_that_fit_are_used(host: Running, folder: Path, plain: bytes) -> None:
    write(folder / "half.safetensors", {**GOOD, **layer("lora_unet_of_no_model", (4, 4), 1)})
    result = host.generate(prompt="a circle<lora:half:1><lora:nobody:1>")
    alone = host.generate(prompt="a circle<lora:good:1>")
    assert result.images[0].tobytes() == alone.images[0].tobytes() != plain
    assert "LoRA half: 1 of its 2 layers was left out: not in this model ('lora_unet_of_no_model')." in result.comments
    assert "LoRA nobody was left out" in result.comments
    assert "good" not in alone.comments
    assert "LoRA error" not in alone.infotexts[0]


def test_files_outside_of_the_folder_are_not_there(
    host: Running, folder: Path, plain: bytes, tmp_path: Path, as_link: Callable[[Path, Path], None]
) -> None:
    write(tmp_path / "outside.safetensors", GOOD)
    as_link(folder / "outside.safetensors", tmp_path / "outside.safetensors")
    assert "there is no" in refused(host, "<lora:outside:1>", plain)


@pytest.fixture
def as_link() -> Callable[[Path, Path], None]:
    def make(link: Path, target: Path) -> None:
        try:
            link.symlink_to(target)
        except OSError:
            pytest.skip("this system lets nobody make symbolic links")

    return make


def test_the_api_lists_them(host: Running, folder: Path) -> None:
    from standalone.api.routes import make_router

    app = FastAPI()
    app.include_router(make_router(host.host.queue))
    client = TestClient(app)
    odd = {"deep": "{" * 10_000, "infinite": '{"a": 1e999}', "half": '{"a": "\\ud800"}', "good": '{"a": [1]}'}
    write(folder / "people" / "anna.safetensors", GOOD, {"ss_output_name": "Anna", **odd})
    (folder / "broken.safetensors").write_bytes(b"nothing")
    assert client.post("/sdapi/v1/refresh-loras").json() is None
    answer = client.get("/sdapi/v1/loras")
    assert str(host.host.data_dir) not in answer.text
    found = {item["name"]: item for item in answer.json()}
    assert set(found) == {"anna", "broken", "good"}
    assert all(set(item) == {"name", "alias", "path", "metadata"} for item in found.values())
    assert (found["anna"]["alias"], found["anna"]["path"]) == ("Anna", "people/anna.safetensors")
    assert found["anna"]["metadata"] == {"ss_output_name": "Anna", **odd, "good": {"a": [1]}}
    assert (found["good"]["alias"], found["good"]["metadata"]) == ("good", {})
    (folder / "good.safetensors").unlink()
    client.post("/sdapi/v1/refresh-loras")
    assert {item["name"] for item in client.get("/sdapi/v1/loras").json()} == {"anna", "broken"}


def test_loras_are_no_checkpoints(host: Running, folder: Path) -> None:
    from modules import sd_models

    save_file(GOOD, str(folder.parent / "another.safetensors"))
    try:
        sd_models.list_models()
        names = [Path(info.filename).name for info in sd_models.checkpoints_list.values()]
    finally:
        (folder.parent / "another.safetensors").unlink()
        sd_models.list_models()
    assert "another.safetensors" in names
    assert "good.safetensors" not in names


def test_the_hash_is_that_of_the_data_alone(folder: Path, host: Running) -> None:
    """So that a file keeps it when its metadata are edited; the trainer's own word goes before."""
    from standalone.host.lora import folder as listed

    write(folder / "noted.safetensors", GOOD, {"note": "x" * 100})
    write(folder / "told.safetensors", GOOD, {"sshs_model_hash": "ab" * 32})
    write(folder / "lying.safetensors", GOOD, {"sshs_model_hash": json.dumps({"a": "<b>, x: y"})})
    hashes = {}
    for name in ("good", "noted", "told", "lying"):
        found = listed().find(name)
        assert found is not None
        hashes[name] = found.shorthash
    assert hashes["good"] == hashes["noted"] == hashes["lying"]
    assert hashes["told"] == "ab" * 6
