"""FABRIC and Guidance with models of other families in the real WebUI.

They are those that `models` makes. SD_WEBUI_MORE_CKPTS names further small ones for AUTOMATIC1111's WebUI, such as SD2,
each with its `.yaml` beside it, separated as in PATH.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lib_methods.safetensors import write_tensors
from tests.webui.browser import BrowserUnavailable, browser, open_accordion, open_page
from tests.webui.client import JSON, ApiError
from tests.webui.edits import CAPTION, IMG2IMG, SHORT, TXT2IMG, edited, panels, psnr
from tests.webui.hosts import A1111, FORGE, NEO
from tests.webui.jobs import BASE, CASES, Runs, feedback, generate, largest_difference, with_fabric
from tests.webui.methods.test_dreambooth import ROUTES, drawn, train
from tests.webui.methods.test_fabric import liked
from tests.webui.methods.test_guidance import on
from tests.webui.methods.test_page import text_of, wait
from tests.webui.models import made, write_gguf
from tests.webui.server import PACK_NAME, REPO, Installation, WebUI, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]
MORE: list[Path | str] = [Path(path) for path in os.environ.get("SD_WEBUI_MORE_CKPTS", "").split(os.pathsep) if path]
MADE = ("sd1-inpainting", "sd1-q8", "sdxl", "sdxl-v", "mugen")
CHOSEN = ("txt2img, Euler a", "txt2img, DDIM", "batch of two", "Hires.fix", "img2img", "inpainting")
METHODS: dict[str, tuple[Callable[[JSON], JSON], str]] = {
    "FABRIC": (liked, "FABRIC likes"),
    "Guidance": (on, "Guidance skimming scale: 3"),
}
# with text encoders of the published size, hundreds of sentences take minutes
EDIT: JSON = {"inversion": "direct", "direction_from": "caption"}
KEYS = {
    "FABRIC": "fabric",
    "Guidance": "guidance",
    "InstructPix2Pix": "image_cfg",
    "NAG": "nag",
    "pix2pix-zero": "pix2pix_zero",
}
NAMES = {
    "Flux": ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"],
    "Chroma": ["distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"],
}
Plain = dict[str, tuple[bytes, ...] | ApiError]


@pytest.fixture(scope="module", params=[*MORE, *MADE], ids=lambda p: getattr(p, "stem", p))
def other(request: pytest.FixtureRequest, installation: Installation) -> Installation:
    """The WebUI with another checkpoint."""
    is_made = isinstance(request.param, str)
    if not is_made and installation.host.guesses:
        pytest.skip("of SD_WEBUI_MORE_CKPTS, for AUTOMATIC1111's WebUI")
    if request.param == "sd1-q8" and installation.host is not NEO:
        pytest.skip(f"{installation.host.title} reads no GGUF files")
    if request.param == "mugen" and installation.host is not NEO:
        pytest.skip(f"{installation.host.title} does not know this model")
    return dataclasses.replace(installation, checkpoint=made(request.param) if is_made else request.param)


@pytest.fixture(scope="module")
def plain(other: Installation, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """What it generates without the pack. Its server ends before the next one starts, as two with SDXL take 12 GB."""
    images: Plain = {}
    with serving(other, tmp_path_factory.mktemp("webui-plain-model")) as server:
        for name in CHOSEN:
            try:
                images[name] = generate(server, CASES[name]).pixels
            except ApiError as error:
                images[name] = error
    failures = {name: str(answer) for name, answer in images.items() if isinstance(answer, ApiError)}
    assert len(failures) < len(CHOSEN), f"the WebUI generates nothing with {other.checkpoint.name}: {failures}"
    return images


@pytest.fixture(scope="module")
def model(other: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """It with the pack."""
    with serving(other, tmp_path_factory.mktemp("webui-model"), {PACK_NAME: REPO}) as server:
        yield server


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_acts_and_repeats_and_off_is_off(
    plain: Plain, model: WebUI, runs: Runs, method: str, name: str
) -> None:
    off = plain[name]
    if isinstance(off, ApiError):
        pytest.skip(f"the WebUI itself cannot do this with this model: {off}")
    asked, named = METHODS[method][0](CASES[name]), METHODS[method][1]
    before = len(model.log())
    made = runs.first(model, asked)
    assert model.errors(before) == []
    assert all(named in text and "error" not in text for text in made.infotexts)
    assert all(one != other for one, other in zip(off, made.pixels))
    assert generate(model, asked).pixels == made.pixels
    assert generate(model, CASES[name]).pixels == off


SAMPLER = pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
START = pytest.mark.parametrize("case", [IMG2IMG, TXT2IMG], ids=["img2img", "txt2img"])


@SAMPLER
@START
def test_an_edit_acts_and_repeats_and_strength_0_leaves_the_image(
    model: WebUI, runs: Runs, case: JSON, sampler: str
) -> None:
    the_edit_is_in_order(model, runs, {**case, **SHORT, "sampler_name": sampler})


@SAMPLER
@START
def test_so_does_an_edit_with_the_hosts_option_for_zero_terminal_snr(
    model: WebUI, runs: Runs, case: JSON, sampler: str
) -> None:
    if model.installation.host is not A1111 or model.installation.checkpoint.stem != "sdxl-v":
        pytest.skip("the forks read it from the checkpoint")
    job = {**case, **SHORT, "sampler_name": sampler}
    plain, setting = runs.first(model, job), "sd_noise_schedule"
    model.client.post("/sdapi/v1/options", {setting: "Zero Terminal SNR"})
    try:
        generate(model, job)  # this WebUI makes img2img's sampler before it looks at the option
        assert generate(model, job).pixels != plain.pixels
        the_edit_is_in_order(model, Runs(), job)
    finally:
        model.client.post("/sdapi/v1/options", {setting: "Default"})
        generate(model, job)


def the_edit_is_in_order(model: WebUI, runs: Runs, job: JSON) -> None:
    """Edits of this job act and repeat, and strength 0 gives what the edit starts from."""
    try:
        off = runs.first(model, job)
    except ApiError as error:
        pytest.skip(f"the WebUI itself cannot do this with this model: {error}")
    before = len(model.log())
    edit = generate(model, edited(job, **EDIT))
    if model.installation.checkpoint.stem == "mugen":
        assert 'pix2pix-zero error: "This checkpoint was trained with flow matching' in edit.infotexts[0]
        assert edit.pixels == off.pixels
        return
    still = generate(model, edited(job, **EDIT, strength=0))
    assert model.errors(before) == []
    for answer in (edit, still):
        assert "pix2pix-zero source: green" in answer.infotexts[0] and "error" not in answer.infotexts[0]
    source = panels(still.images[1])[0]  # the image that the edit starts from, in txt2img what the prompt gives
    near, far = (psnr(answer.images[0], source) for answer in (still, edit))
    assert near > 35 and far < near and edit.pixels[0] != still.pixels[0]
    assert generate(model, edited(job, **EDIT)).pixels == edit.pixels
    assert generate(model, job).pixels == off.pixels


FORMS: dict[str, JSON] = {
    "mask by word": {"mask_mode": "by word", "mask_word": "circles", "mask_level": 0.9},
    "soft blend": {"guidance": "soft blend", "structure": 0.5},
    "memory not saved": {"save_memory": False},
}
TWO: JSON = {**SHORT, "prompt": f"{CAPTION} AND circles :0.5", "batch_size": 2}
HIRES: JSON = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.5}
PLACES: dict[str, JSON] = {
    "img2img": {**IMG2IMG, **TWO},
    "txt2img": {**TXT2IMG, **TWO},
    "Hires.fix": {**TXT2IMG, **SHORT, **HIRES, "hr_second_pass_steps": 4},
}


@pytest.fixture(scope="module")
def uneven(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with the pack and a random SD1 whose attention is not the same everywhere."""
    if not installation.host.guesses:
        pytest.skip("`shapes` shows masks by word there")
    other = dataclasses.replace(installation, checkpoint=made("sd1-uneven"))
    with serving(other, tmp_path_factory.mktemp("webui-uneven"), {PACK_NAME: REPO}) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_masks_by_word_and_soft_blend_act_in_every_kind_of_job(
    uneven: WebUI, runs: Runs, place: str, form: str
) -> None:
    case, before = PLACES[place], len(uneven.log())
    count = case.get("batch_size", 1)
    plain, ordinary = runs.first(uneven, case), runs.first(uneven, edited(case))
    edit = runs.first(uneven, edited(case, **FORMS[form]))
    assert all("pix2pix-zero source: green" in text and "error" not in text for text in edit.infotexts[:count])
    assert all(one != other for one, other in zip(plain.pixels, edit.pixels))
    for one, other in zip(ordinary.images[:count], edit.images):
        assert (largest_difference(one, other) > 2) == (form != "memory not saved")
    assert generate(uneven, edited(case, **FORMS[form])).pixels == edit.pixels
    assert generate(uneven, case).pixels == plain.pixels
    assert uneven.errors(before) == []


def test_a_lora_is_trained_on_it_and_changes_the_image(model: WebUI) -> None:
    if not model.installation.checkpoint.stem.startswith("sdxl"):
        pytest.skip("test_dreambooth.py trains on SD1, and flow matching is not trained")
    before = len(model.log())
    plain = drawn(model, "a ohwx dog")
    status = train(model, name="rex")
    assert (status["training"]["error"], status["training"]["status"], len(status["losses"])) == ("", "done", 4)
    usage = model.client.post(f"{ROUTES}/use")
    assert usage == {"prompt": "a ohwx dog <lora:rex:1>", "checkpoint": ""}
    changed = drawn(model, str(usage["prompt"]))
    assert "rex" in changed.infotexts[0] and changed.pixels != plain.pixels
    assert drawn(model, "a ohwx dog").pixels == plain.pixels
    assert model.errors(before) == []
    log = model.log()[before:]
    assert "not found" not in log and "unmatched" not in log.lower(), "every one of its weights has its place"


@pytest.fixture(scope="module")
def anima(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with the pack and a transformer."""
    if installation.host is not NEO:
        pytest.skip("of the WebUIs only Forge Neo loads a transformer from a small file")
    other = dataclasses.replace(installation, checkpoint=made("anima"))
    with serving(other, tmp_path_factory.mktemp("webui-anima"), {PACK_NAME: REPO}) as server:
        yield server


def test_a_transformer_is_refused_by_name_and_not_in_the_infotext(anima: WebUI) -> None:
    case = {**BASE, "steps": 1, "width": 64, "height": 64, "cfg_scale": 1}
    asked = edited(on(with_fabric(case, likes=feedback("red"))))
    asked["alwayson_scripts"]["InstructPix2Pix"] = {"args": [{}]}
    texts = [generate(anima, payload).infotexts[0] for payload in (case, asked)]
    assert texts[0] == texts[1]


@pytest.mark.browser
def test_the_page_refuses_a_transformer_by_name_before_generate(anima: WebUI) -> None:
    the_page_refuses(anima, "Anima")


@pytest.mark.browser
@pytest.mark.parametrize(("file", "name"), [("flux.safetensors", "Flux"), ("chroma-Q8_0.gguf", "Chroma")])
def test_the_page_refuses_a_transformer_that_is_chosen_and_not_loaded_yet(
    with_pack: WebUI, file: str, name: str
) -> None:
    """Forge and Neo load what is chosen at the next job; the names in its file show what it is."""
    if with_pack.installation.host not in (FORGE, NEO):
        pytest.skip("it loads a checkpoint as soon as it is chosen, and none of these files can be loaded")
    client, target = with_pack.client, with_pack.data / "models" / "Stable-diffusion" / file
    write = write_gguf if target.suffix == ".gguf" else write_tensors
    write(target, dict.fromkeys(NAMES[name], torch.zeros(1)))
    try:
        client.post("/sdapi/v1/refresh-checkpoints")
        client.post("/sdapi/v1/options", {"sd_model_checkpoint": file})
        the_page_refuses(with_pack, name)
    finally:
        client.post("/sdapi/v1/options", {"sd_model_checkpoint": with_pack.installation.checkpoint.name})
        target.unlink()
        client.post("/sdapi/v1/refresh-checkpoints")


def the_page_refuses(server: WebUI, name: str) -> None:
    """It says of every method that it does not support a model of this name."""
    try:
        with browser() as window:
            open_page(window, server.client.url)
            for title, key in KEYS.items():
                open_accordion(window, title)  # which switches it on
                line, wanted = f"#{key}_txt2img_status", f"{title} does not support {name}."
                wait(window, lambda line=line, wanted=wanted: wanted in text_of(window, line))
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))
