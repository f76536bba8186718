"""`<lora:...>` in the jobs of the standalone host: it acts, it goes, and what is wrong is said where the user looks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.shared.jobs import REPO
from tests.standalone.conftest import Running
from tests.standalone.loras import State, layer, write

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
UNET: State = {**layer(f"{BLOCK}_attn1_to_v", (32, 32), 1), **layer(f"{BLOCK}_attn2_to_out_0", (32, 32), 2)}
TEXT: State = layer("lora_te_text_model_encoder_layers_0_mlp_fc1", (64, 32), 3, size=1.0)
BOTH = {**UNET, **TEXT}
HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    running = start_host(checkpoints("sd1", levels=1), extension_dirs=[REPO])
    folder = running.host.data_dir / "models" / "Lora"
    assert folder.is_dir(), "the host makes the folder, so that users see where LoRAs go"
    write(folder / "both.safetensors", BOTH, {"ss_output_name": "An Alias"})
    write(folder / "people" / "text.safetensors", TEXT)
    write(folder / "zoo" / "animals" / "text.safetensors", UNET)
    write(folder / "animals" / "text.safetensors", UNET)
    write(folder / "LOUD.SAFETENSORS", TEXT)
    write(folder / "unet.safetensors", UNET)
    return running


@pytest.fixture(autouse=True)
def _the_model_is_bare_afterwards(host: Running) -> Iterator[None]:
    """Whatever a test does, no bit of the model is changed."""
    before = {key: value.clone() for key, value in host.host.model.state_dict().items()}
    yield
    assert all(torch.equal(value, before[key]) for key, value in host.host.model.state_dict().items())
    assert host.host.model.loaded_networks == ()


def loras(running: Running) -> Path:
    return Path(running.host.data_dir) / "models" / "Lora"


def pixels(processed: Any) -> list[bytes]:
    return [image.tobytes() for image in processed.images[processed.index_of_first_image :]]


def made(host: Running, prompt: str, **fields: Any) -> list[bytes]:
    return pixels(host.generate(prompt=prompt, **fields))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[Any, ...]]]:
    """The LoRAs in the model at every sampling: name, strengths, ranks."""
    from modules import sd_samplers_common, shared

    noted: list[list[tuple[Any, ...]]] = []
    original = sd_samplers_common.Sampler.launch_sampling

    def watched(self: Any, steps: int, func: Any) -> Any:
        networks = shared.sd_model.loaded_networks
        noted.append([(n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in networks])
        return original(self, steps, func)

    monkeypatch.setattr(sd_samplers_common.Sampler, "launch_sampling", watched)
    return noted


TAGS: dict[str, tuple[Any, ...]] = {
    "<lora:both>": ("both", 1.0, 1.0, None),
    "<lora:both:0.5>": ("both", 0.5, 0.5, None),
    "<lora:both:0.5:0.25>": ("both", 0.5, 0.25, None),
    "<lora:both:0.5:0.25:1>": ("both", 0.5, 0.25, 1),
    "<lora:both:te=0.5>": ("both", 0.5, 0.5, None),
    "<lora:both:unet=0>": ("both", 1.0, 0.0, None),
    "<lora:both:-1:unet=.5:dyn=2>": ("both", -1.0, 0.5, 2),
    "<lora:An Alias:2>": ("both", 2.0, 2.0, None),
    "<lora:text>": ("text", 1.0, 1.0, None),
    "<lora:TEXT.SAFETENSORS>": ("text", 1.0, 1.0, None),
    "<lora:an alias.safetensors:2>": ("both", 2.0, 2.0, None),
    "<lora:people/text>": ("text", 1.0, 1.0, None),
    "<lora:People\\TEXT:1>": ("text", 1.0, 1.0, None),
    "<lora:animals/text>": ("text", 1.0, 1.0, None),
    "<lora:loud>": ("LOUD", 1.0, 1.0, None),
    "<LORA:unet>": ("unet", 1.0, 1.0, None),
    "<lyco:unet>": ("unet", 1.0, 1.0, None),
}


@pytest.mark.parametrize("tag", TAGS)
def test_every_form_of_the_tag(host: Running, seen: list[Any], tag: str) -> None:
    plain, changed = made(host, "a circle"), made(host, f"a circle{tag}")
    assert seen == [[], [TAGS[tag]]]
    assert plain != changed
    assert made(host, "a circle") == plain
    assert made(host, f"a circle{tag}") == changed


def test_of_two_files_of_one_name_the_folder_tells_which(host: Running) -> None:
    assert made(host, "a circle<lora:animals/text>") == made(host, "a circle<lora:unet>")
    assert made(host, "a circle<lora:people/text>") != made(host, "a circle<lora:animals/text>")


def test_several_at_once(host: Running, seen: list[Any]) -> None:
    made(host, "a <lora:unet:1>circle<lora:text:0.5>")
    assert seen == [[("unet", 1.0, 1.0, None), ("text", 0.5, 0.5, None)]]


def test_strength_zero_changes_nothing(host: Running) -> None:
    assert made(host, "a circle<lora:both:0>") == made(host, "a circle")


def test_a_job_never_has_the_text_of_another(host: Running) -> None:
    """Conditioning is kept from job to job; a LoRA of the text encoder must not meet that of another strength."""
    tags = ["", "<lora:text:1>", "<lora:text:0.5>", "<lora:both:1>"]
    first = {tag: made(host, f"a circle{tag}") for tag in tags}
    assert len({tuple(picture) for picture in first.values()}) == len(tags)
    for tag in [*reversed(tags), *tags]:
        assert made(host, f"a circle{tag}") == first[tag], tag


def test_a_file_that_is_written_anew_is_read_anew(host: Running) -> None:
    path = loras(host) / "changing.safetensors"
    write(path, layer("lora_te_text_model_encoder_layers_0_mlp_fc1", (64, 32), 30, size=1.0))
    one = made(host, "a circle<lora:changing:1>")
    stamp = path.stat().st_mtime
    write(path, TEXT)
    os.utime(path, (stamp + 5, stamp + 5))
    assert made(host, "a circle<lora:changing:1>") == made(host, "a circle<lora:people/text:1>") != one


def test_hires_fix_has_the_loras_of_its_own_prompt(host: Running, seen: list[Any]) -> None:
    unet, text = ("unet", 1.0, 1.0, None), ("text", 1.0, 1.0, None)
    host.generate(prompt="a <lora:unet:1>circle", **HIRES)
    both = host.generate(prompt="a <lora:unet:1>circle", hr_prompt="a <lora:text:1>circle", **HIRES)
    host.generate(prompt="a circle", hr_prompt="a <lora:text:1>circle", **HIRES)
    assert seen == [[unet], [unet], [unet], [text], [], [text]]
    assert "unet: " in both.infotexts[0] and "text: " in both.infotexts[0]


def test_every_batch_has_the_loras_of_its_first_prompt(host: Running, seen: list[Any]) -> None:
    result = host.generate(prompt=["a <lora:unet:1>", "a", "a <lora:text:1>"], seed=[1, 1, 1], n_iter=3)
    assert seen == [[("unet", 1.0, 1.0, None)], [], [("text", 1.0, 1.0, None)]]
    assert ["Lora hashes" in text for text in result.infotexts[-3:]] == [True, False, True]
    assert pixels(result)[1:2] == made(host, "a")


def test_img2img(host: Running) -> None:
    job: dict[str, Any] = {"init_images": [Image.new("RGB", (64, 64), (200, 30, 30))], "denoising_strength": 0.7}
    plain, changed = (pixels(host.generate("img2img", prompt=f"a{tag}", **job)) for tag in ("", "<lora:both:1>"))
    assert plain != changed


def test_extra_networks_can_be_switched_off(host: Running, seen: list[Any]) -> None:
    made(host, "a circle<lora:both:1>", disable_extra_networks=True)
    assert seen == [[]]


def test_the_infotext_tells_the_hash(host: Running) -> None:
    text = host.generate(prompt="a circle<lora:An Alias:1>").infotexts[0]
    from standalone.host.lora import folder

    found = folder().find("both")
    assert found is not None
    assert f'Lora hashes: "An Alias: {found.shorthash}"' in text
    off = host.generate(prompt="a<lora:both:1>", override_settings={"lora_add_hashes_to_infotext": False})
    assert "Lora hashes" not in off.infotexts[0]


def test_an_infotext_from_elsewhere_finds_the_file_by_its_hash(host: Running) -> None:
    from modules import infotext_utils, script_callbacks
    from standalone.host.lora import folder

    found = folder().find("both")
    assert found is not None
    hashes = f'Lora hashes: "theirs: {found.shorthash}, nobodys: 123456789abc"'
    text = f"a <lora:theirs:0.5> <lora:nobodys:1>\nSteps: 3, Sampler: Euler, Seed: 1, {hashes}"
    params = infotext_utils.parse_generation_parameters(text)
    script_callbacks.infotext_pasted_callback(text, params)
    assert params["Prompt"] == "a <lora:both:0.5> <lora:nobodys:1>"


def test_an_exception_in_the_middle_of_a_job(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import sd_samplers_common

    def fails(self: Any, steps: int, func: Any) -> Any:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(sd_samplers_common.Sampler, "launch_sampling", fails)
        with pytest.raises(RuntimeError, match="in the middle"):
            host.generate(prompt="a circle<lora:both:1>")
    assert host.host.model.loaded_networks == ()
    assert made(host, "a circle")


def test_a_job_inside_a_job_gives_the_loras_back(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts may make an image of their own in the middle of a job."""
    from modules import sd_samplers_common
    from modules.processing import process_images

    alone = made(host, "a circle<lora:both:1>")
    original = sd_samplers_common.Sampler.launch_sampling
    inner: list[Any] = []

    def nested(self: Any, steps: int, func: Any) -> Any:
        if not inner:
            inner.append(None)
            for prompt in ("a <lora:unet:2>square", "a square"):
                with closing(host.make(prompt=prompt)) as p:
                    inner.append(process_images(p))
        return original(self, steps, func)

    with monkeypatch.context() as patch:
        patch.setattr(sd_samplers_common.Sampler, "launch_sampling", nested)
        assert made(host, "a circle<lora:both:1>") == alone
    assert pixels(inner[2]) == made(host, "a square")
    assert pixels(inner[1]) == made(host, "a <lora:unet:2>square")


def fabric(**request: Any) -> dict[str, list[Any]]:
    from standalone.api.codec import encode_image

    like = encode_image(Image.new("RGB", (64, 64), (30, 200, 40)))
    return {"fabric": [{"enabled": True, "likes": [like], "end": 1.0, **request}]}


def test_fabric_never_has_the_features_of_another_lora(host: Running) -> None:
    """With its cache on and off, FABRIC gives the same; with a LoRA, without, and with it again."""
    path = loras(host) / "other.safetensors"
    write(path, layer(f"{BLOCK}_attn1_to_v", (32, 32), 40))
    tags = ["<lora:both:1>", "", "<lora:both:1>", "<lora:both:0.5>", "<lora:unet:1>", "<lora:other:1>", ""]

    def round_of(**request: Any) -> list[list[bytes]]:
        return [made(host, f"a circle{tag}", script_args=fabric(**request)) for tag in tags]

    uncached = round_of(cache_limit_mb=0)
    assert len({tuple(picture) for picture in uncached}) == len(set(tags))
    assert round_of() == uncached
    assert round_of() == uncached, "now all features come from the cache"
    stamp = path.stat().st_mtime
    write(path, UNET)
    os.utime(path, (stamp + 5, stamp + 5))
    assert made(host, "a circle<lora:other:1>", script_args=fabric()) == uncached[4], "the file is another now"
