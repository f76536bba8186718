"""LoRAs in the real WebUI and in the standalone host: the same files, tags and images; and FABRIC beside them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.standalone.loras import State, layer, write
from tests.webui.checkpoint import weight_shapes
from tests.webui.client import JSON, Generation
from tests.webui.jobs import BASE, CASES, feedback, generate, largest_difference, with_fabric
from tests.webui.server import PACK_NAME, REPO, Installation, WebUI, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]
ROUNDING = 3  # of 255
MORE = [Path(path) for path in os.environ.get("SD_WEBUI_MORE_CKPTS", "").split(os.pathsep) if path]

UNET = re.compile(r"model\.diffusion_model\.(.+)\.weight")
CLIP = re.compile(
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_model\.(encoder\.layers\..+)\.weight"
)
OPEN_CLIP = re.compile(
    r"(cond_stage_model|conditioner\.embedders\.1)\.model\.transformer\.resblocks\.(\d+)\.(.+?)[._]weight"
)
TOWER = {"cond_stage_model": "lora_te", "conditioner.embedders.0": "lora_te1", "conditioner.embedders.1": "lora_te2"}
OPEN_CLIP_PARTS = {"attn.out_proj": "self_attn_out_proj", "mlp.c_fc": "mlp_fc1", "mlp.c_proj": "mlp_fc2"}


def text_layers(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The linear layers of all text encoders by kohya's names, with the shapes of their weights."""
    found: dict[str, list[int]] = {}
    last = max((int(match[2]) for match in map(OPEN_CLIP.fullmatch, shapes) if match), default=0)
    for name, shape in shapes.items():
        if (match := CLIP.fullmatch(name)) and len(shape) == 2:
            found[f"{TOWER[match[1]]}_text_model_{match[2].replace('.', '_')}"] = shape
        elif (match := OPEN_CLIP.fullmatch(name)) and len(shape) == 2 and int(match[2]) < last:
            stem = f"{TOWER[match[1]]}_text_model_encoder_layers_{match[2]}"
            if match[3] == "attn.in_proj":  # one matrix here, three in the names of LoRAs
                found.update({f"{stem}_self_attn_{part}_proj": [shape[0] // 3, shape[1]] for part in "qkv"})
            else:
                found[f"{stem}_{OPEN_CLIP_PARTS[match[3]]}"] = shape
    return found


def unet_layers(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The linear layers and convolutions of the UNet by kohya's names (those after LDM), with their shapes."""
    matches = ((UNET.fullmatch(name), shape) for name, shape in shapes.items() if len(shape) in (2, 4))
    found = {f"lora_unet_{match[1].replace('.', '_')}": shape for match, shape in matches if match}
    outputs, inputs, *kernel = found["lora_unet_input_blocks_0_0"]
    if inputs == 9:  # LoRAs are made with the ordinary model; inpainting adds inputs to it
        found["lora_unet_input_blocks_0_0"] = [outputs, 4, *kernel]
    return found


def lora(layers: dict[str, list[int]], seed: int, size: float = 0.02) -> State:
    """A LoRA for all `layers`; every third without alpha, some convolutions with a matrix in the middle."""
    state: State = {}
    for number, (name, shape) in enumerate(layers.items()):
        kind: dict[str, Any] = {"alpha": 3.0 if number % 3 else None, "mid": len(shape) == 4 and number % 2 == 1}
        state.update(layer(name, shape, seed + number, rank=2 + number % 3, size=size, **kind))
    return state


DIFFUSERS_NAMES = {  # in any model: where these are in LDM's names does not depend on how many layers a block has
    "down_blocks_0_attentions_0": "input_blocks_1_1",
    "mid_block_attentions_0": "middle_block_1",
    "mid_block_resnets_1_conv1": "middle_block_2_in_layers_2",
    "up_blocks_0_attentions_0": "output_blocks_0_1",
    "up_blocks_0_resnets_0_time_emb_proj": "output_blocks_0_0_emb_layers_1",
    "time_embedding_linear_2": "time_embed_2",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
}


def in_diffusers_names(layers: dict[str, list[int]]) -> dict[str, list[int]]:
    """Those of the `layers` that DIFFUSERS_NAMES knows, in its names."""
    found: dict[str, list[int]] = {}
    for diffusers, ldm in DIFFUSERS_NAMES.items():
        start = f"lora_unet_{ldm}"
        names = [name for name in layers if name == start or name.startswith(start + "_")]
        found.update({f"lora_unet_{diffusers}{name[len(start) :]}": layers[name] for name in names})
    return found


def write_loras(checkpoint: Path, folder: Path) -> None:
    """The LoRAs of the tests, made for `checkpoint`."""
    shapes = weight_shapes(checkpoint)
    unet, text = unet_layers(shapes), text_layers(shapes)
    assert unet and text
    write(folder / "unet.safetensors", lora(unet, 1), {"ss_output_name": "The UNet"})
    write(folder / "people" / "text.safetensors", lora(text, 1000, 0.1))
    both = {**lora(unet, 2000), **lora(text, 3000, 0.1)}
    write(folder / "half.safetensors", {key: value.half() for key, value in both.items()}, {"ss_output_name": "half"})
    if found := in_diffusers_names(unet):
        write(folder / "diffusers.safetensors", lora(found, 4000, 0.05))
    write(folder / "stranger.safetensors", layer("lora_unet_of_no_model", (4, 4), 1))


def with_loras(server: WebUI) -> WebUI:
    write_loras(server.installation.checkpoint, server.data / "models" / "Lora")
    server.client.post("/sdapi/v1/refresh-loras")
    return server


@pytest.fixture(scope="module")
def real(with_pack: WebUI) -> WebUI:
    """The WebUI with the pack and with LoRAs."""
    return with_loras(with_pack)


# -- FABRIC beside LoRAs, in the WebUI

LIKED = with_fabric(BASE, likes=feedback("red"), dislikes=feedback("blue"))
TAGS = [
    "",
    "<lora:half:1>",
    "<lora:half:0.5>",
    "<lora:half:1:0.5>",
    "<lora:unet:1>",
    "<lora:text:1>",
    "<lora:text:1><lora:unet:1>",
]


def tagged(payload: JSON, tag: str, **more: Any) -> JSON:
    return {**payload, **more, "prompt": payload["prompt"] + tag}


def from_scratch(server: WebUI, payload: JSON) -> tuple[bytes, ...]:
    """What `payload` gives when nothing is in FABRIC's cache."""
    (settings,) = payload["alwayson_scripts"]["FABRIC"]["args"]
    nothing_kept: JSON = {"cache_limit_mb": 0}
    # a job without room for its own features drops all others; its image and noise are no other job's
    server.client.generate(with_fabric({**BASE, "steps": 1}, likes=feedback("teal"), seed=99, **nothing_kept))
    unkept = {**payload, "alwayson_scripts": {"FABRIC": {"args": [{**settings, **nothing_kept}]}}}
    return generate(server, unkept).pixels


def test_fabric_and_a_lora_both_act(real: WebUI) -> None:
    before = len(real.log())
    made = [generate(real, tagged(payload, tag)) for payload in (BASE, LIKED) for tag in TAGS]
    assert len({result.pixels for result in made}) == len(made)
    assert all("FABRIC likes" in result.infotexts[0] for result in made[len(TAGS) :])
    assert real.errors(before) == []


def test_with_the_cache_and_without_it_is_the_same(real: WebUI) -> None:
    """With one LoRA, none, the first again ...: features of another LoRA, or of none, are never used."""
    jobs = [tagged(LIKED, tag) for tag in (*TAGS, *TAGS[:3])]
    cached = [generate(real, job).pixels for job in jobs]
    wanted = [from_scratch(real, job) for job in jobs[: len(TAGS)]]
    assert cached == [*wanted, *wanted[:3]]


def test_hires_fix_with_a_lora_for_each_pass(real: WebUI) -> None:
    hires = with_fabric(CASES["Hires.fix"], likes=feedback("red"))
    first = tagged(hires, "<lora:text:1>")
    jobs = [{**first, "hr_prompt": f"a circle on white{tag}"} for tag in ("<lora:unet:1>", "", "<lora:unet:1>")]
    cached = [generate(real, job).pixels for job in jobs]
    wanted = [from_scratch(real, job) for job in jobs[:2]]
    assert cached == [*wanted, wanted[0]]
    assert wanted[0] != wanted[1]


def test_a_file_that_is_written_anew_has_features_of_its_own(real: WebUI) -> None:
    path = real.data / "models" / "Lora" / "changing.safetensors"
    layers = unet_layers(weight_shapes(real.installation.checkpoint))
    job = tagged(LIKED, "<lora:changing:1>")
    stamps = iter(range(1_900_000_000, 2_000_000_000, 10))

    def become(seed: int) -> None:
        stamp = next(stamps)
        os.utime(write(path, lora(layers, seed)), (stamp, stamp))
        real.client.post("/sdapi/v1/refresh-loras")
        # the WebUI takes a changed file up only after a job without it
        real.client.generate(tagged(BASE, "", steps=1))

    cached, wanted = [], []
    for seed in (1, 2000, 1):
        become(seed)
        cached.append(generate(real, job).pixels)
    for seed in (1, 2000):
        become(seed)
        wanted.append(from_scratch(real, job))
    assert cached == [*wanted, wanted[0]]
    assert wanted[0] != wanted[1]


# -- both hosts


class Standalone:
    """The standalone host with the same LoRAs."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def generate(self, payload: JSON) -> tuple[list[Any], str, str]:
        """Pictures, infotext and comments."""
        from modules import processing, scripts

        fields = {**payload, "do_not_save_samples": True, "do_not_save_grid": True}
        with closing(processing.StableDiffusionProcessingTxt2Img(**fields)) as p:
            p.scripts = scripts.scripts_txt2img
            p.script_args = tuple(p.scripts.default_args())
            result = self.host.queue.run(processing.process_images, p)
        return list(result.images), result.infotexts[0], str(result.comments)


def start_standalone(installation: Installation, data: Path) -> Iterator[Standalone]:
    from standalone import host as standalone_host

    write_loras(installation.checkpoint, data / "models" / "Lora")
    host = standalone_host.start(checkpoint=installation.checkpoint, data_dir=data, device="cpu", extension_dirs=[])
    try:
        yield Standalone(host)
    finally:
        host.close()


@pytest.fixture(scope="module", params=[None, *MORE], ids=lambda path: getattr(path, "stem", "default"))
def hosts(
    request: pytest.FixtureRequest, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WebUI, Standalone]]:
    """The real WebUI and the standalone host with one checkpoint and the same LoRAs."""
    data = tmp_path_factory.mktemp("standalone")
    if request.param is None:
        server = with_loras(request.getfixturevalue("with_pack"))
        for ours in start_standalone(installation, data):
            yield server, ours
        return
    other = dataclasses.replace(installation, checkpoint=request.param)
    with serving(other, tmp_path_factory.mktemp("webui-model"), {PACK_NAME: REPO}) as server:
        for ours in start_standalone(other, data):
            yield with_loras(server), ours


EULER: JSON = {**BASE, "sampler_name": "Euler", "scheduler": "Automatic"}
PARITY: dict[str, JSON] = {
    "in the UNet": tagged(EULER, "<lora:unet:0.8>"),
    "in the text encoders": tagged(EULER, "<lora:text:3>"),
    "in both, by an alias, unequal": tagged(EULER, "<lora:half:0.8:0.4><lora:The UNet:-0.5>"),
    "by names of arguments": tagged(EULER, "<lora:half:1:te=0.3:unet=0.9>"),
    "without strength": tagged(EULER, "<lora:half>"),
    "cut to fewer ranks": tagged(EULER, "<lora:text:4:4:1>"),
    "diffusers' names": tagged(EULER, "<lora:diffusers:1>"),
    "Hires.fix": {**CASES["Hires.fix"], "sampler_name": "Euler", "prompt": "a", "hr_prompt": "a <lora:half:1>"},
    "two batches": tagged(EULER, "<lora:half:1>", batch_size=2, n_iter=2),
    "not there": tagged(EULER, "<lora:nobody:1>"),
    "of another kind of model": tagged(EULER, "<lora:stranger:1>"),
}


def hashes(infotext: str) -> str | None:
    found = re.search(r'Lora hashes: ("[^"]*"|[^,]*)', infotext)
    return found[1] if found else None


@pytest.mark.parametrize("name", PARITY)
def test_both_hosts_draw_the_same(hosts: tuple[WebUI, Standalone], name: str) -> None:
    server, ours = hosts
    payload = PARITY[name]
    plain = {key: re.sub("<.*?>", "", value) if "prompt" in key else value for key, value in payload.items()}
    theirs: Generation = server.client.generate(payload)
    without = server.client.generate(plain)
    images, infotext, comments = ours.generate(payload)
    differences = [largest_difference(image.convert("RGB"), other) for image, other in zip(images, theirs.images)]
    assert len(images) == len(theirs.images)
    if max(differences) > ROUNDING:
        bare = [largest_difference(a.convert("RGB"), b) for a, b in zip(ours.generate(plain)[0], without.images)]
        if max(bare) > ROUNDING:  # a VAE whose random numbers show, each host with its own generator
            pytest.skip(f"the hosts differ by {max(bare)} with this model without a LoRA, too")
    assert max(differences) <= ROUNDING, differences
    effects = [largest_difference(one, other) for one, other in zip(theirs.images, without.images)]
    if name in ("not there", "of another kind of model"):
        assert max(effects) == 0
        assert "was left out" in comments
    else:
        assert min(effects) > 2 * ROUNDING, effects
        assert comments == ""
        assert hashes(infotext) == hashes(theirs.infotexts[0]) is not None


def test_both_hosts_list_the_same(hosts: tuple[WebUI, Standalone]) -> None:
    from standalone.api.listings import loras

    def fields(listed: list[JSON]) -> list[JSON]:
        return sorted(({**item, "path": Path(item["path"]).name} for item in listed), key=lambda item: item["name"])

    server, ours = hosts
    mine = fields(loras())
    names = {item["name"] for item in mine}
    assert fields([item for item in server.client.get("/sdapi/v1/loras") if item["name"] in names]) == mine


def test_the_reference_of_this_file_is_not_empty(installation: Installation) -> None:
    shapes = weight_shapes(installation.checkpoint)
    assert len(unet_layers(shapes)) > 20 and len(text_layers(shapes)) > 5
    assert all(torch.isfinite(tensor).all() for tensor in lora(unet_layers(shapes), 1).values())
