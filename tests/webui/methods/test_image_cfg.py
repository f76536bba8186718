"""InstructPix2Pix in the real WebUI and its forks, with a small checkpoint that has 8 input channels.

SD_WEBUI_MORE_CKPTS names small checkpoints for AUTOMATIC1111's WebUI, each with its `.yaml` beside it, separated as in
PATH; the one among them that sees an image is taken, otherwise `shapes-instruct`. The forks get one of `models`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.webui.checkpoint import weight_shapes
from tests.webui.client import JSON, ApiError, Generation, decode_image, encode_image
from tests.webui.jobs import BASE, Runs, feedback, generate, inpainting, largest_difference, picture
from tests.webui.methods.test_beside_built_in import built_in
from tests.webui.models import made
from tests.webui.server import PACK_NAME, REPO, Installation, WebUI, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "image_cfg.py").is_file(), reason="scripts/image_cfg.py is not there"),
]
ROUNDING = 2  # of 255
SHIPPED = REPO / "models" / "shapes-instruct" / "shapes-instruct.safetensors"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
HIRES: JSON = {**BASE, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
IMG2IMG: JSON = {**BASE, "init_images": [picture("green")], "denoising_strength": 0.7, "steps": 4}
SMALL: JSON = {**BASE, "width": 64, "height": 64}


def _sees_picture(path: str) -> bool:
    return Path(path).is_file() and weight_shapes(Path(path)).get(FIRST, [0, 0])[1] == 8


@pytest.fixture(scope="module")
def model(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with the pack and a checkpoint that sees an image."""
    named = [path for path in os.environ.get("SD_WEBUI_MORE_CKPTS", "").split(os.pathsep) if _sees_picture(path)]
    own = made("sd1-edit") if installation.host.guesses else Path(named[0]) if named else SHIPPED
    other = dataclasses.replace(installation, checkpoint=own)
    with serving(other, tmp_path_factory.mktemp("webui-edit"), {PACK_NAME: REPO}) as server:
        yield server


@pytest.fixture(autouse=True)
def no_error_is_logged(model: WebUI, request: pytest.FixtureRequest):
    """The host logs and swallows exceptions of a script; a test that only looks at the image would not see them."""
    before = len(model.log())
    yield
    if request.function is not test_a_fork_without_the_method_says_what_to_turn_on:
        assert model.errors(before) == []


def edited(payload: JSON, **fields: object) -> JSON:
    """`payload` with an image to edit, unless `fields` say otherwise."""
    named = {"image": picture("red"), "image_scale": 1.5, **fields}
    return {**payload, "alwayson_scripts": {"InstructPix2Pix": {"args": [named]}}}


def mask(left: int, right: int) -> str:
    """Two halves of a brightness each, 0 to 255."""
    image = Image.new("L", (128, 128), left)
    image.paste(right, (64, 0, 128, 128))
    return encode_image(image)


BLACK, WHITE, RIGHT = mask(0, 0), mask(255, 255), mask(0, 255)


CASES: dict[str, JSON] = {
    "txt2img, Euler a": BASE,
    "txt2img, DDIM, another aspect": {**BASE, "sampler_name": "DDIM", "width": 192},
    "txt2img, Heun": {**SMALL, "sampler_name": "Heun"},
    "txt2img, DDIM CFG++": {**SMALL, "sampler_name": "DDIM CFG++"},
    "txt2img, UniPC": {**SMALL, "sampler_name": "UniPC"},
    "txt2img, PLMS": {**SMALL, "sampler_name": "PLMS"},
    "batch of two, twice": {**SMALL, "batch_size": 2, "n_iter": 2},
    "AND": {**SMALL, "prompt": "a circle AND a square :0.5 AND white"},
    "long prompt": {**SMALL, "prompt": "red " * 90},
    "slices": {**SMALL, "prompt": "red " * 90, "batch_size": 2, "override_settings": {"batch_cond_uncond": False}},
    "skipped uncond": {**SMALL, "steps": 4, "override_settings": {"skip_early_cond": 0.5}},
    "Hires.fix": HIRES,
    "Hires.fix, image upscaler": {**HIRES, "hr_upscaler": "Lanczos", "hr_sampler_name": "DDIM"},
    "img2img": IMG2IMG,
    "img2img, latent resize": {**IMG2IMG, "resize_mode": 3, "width": 192},
    "inpainting": {**inpainting(BASE), "steps": 4},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_job_is_edited_and_repeats(model: WebUI, runs: Runs, case: JSON) -> None:
    job = edited(case, image=None) if "init_images" in case else edited(case)
    first = runs.first(model, job)
    assert all("InstructPix2Pix image" in text and "error" not in text for text in first.infotexts)
    assert generate(model, job).pixels == first.pixels
    closer = runs.first(model, edited(case, image=picture("blue"), image_scale=3.0))
    assert all(one != other for one, other in zip(first.pixels, closer.pixels))


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM", "Heun"])
@pytest.mark.parametrize("case", [IMG2IMG, CASES["inpainting"]], ids=["img2img", "inpainting"])
def test_img2img_is_the_hosts_own(model: WebUI, runs: Runs, case: JSON, sampler: str) -> None:
    """The host's own way works in img2img; with the same settings ours gives its image."""
    job = {**case, "sampler_name": sampler}
    theirs = runs.first(model, {**job, "image_cfg_scale": 1.7})
    ours = runs.first(model, edited({**job, "image_cfg_scale": 9.9}, image=None, image_scale=1.7))
    assert largest_difference(ours.images[0], theirs.images[0]) <= ROUNDING
    assert "Image CFG scale" not in ours.infotexts[0], "the host's own scale does not act and is not named"


def test_the_model_is_shown_the_tabs_image_with_its_mask_filled(model: WebUI, runs: Runs) -> None:
    """Masked content "fill"; by the host's own function, which needs nothing else of it."""
    spec = importlib.util.spec_from_file_location("masking", model.installation.root / "modules" / "masking.py")
    assert spec is not None and spec.loader is not None
    masking = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(masking)
    job = {**CASES["inpainting"], "mask": RIGHT, "mask_blur": 0, "inpainting_fill": 0}
    filled = encode_image(masking.fill(decode_image(picture("green")), decode_image(RIGHT)))
    shown = [runs.first(model, edited(job, image=image)).images[0] for image in (None, filled, picture("green"))]
    assert largest_difference(shown[0], shown[1]) <= ROUNDING < largest_difference(shown[0], shown[2])


@pytest.mark.parametrize(("text", "image"), [(5.0, 1.0), (2.0, 2.0), (1.0, 1.0)])
def test_short_cuts_give_the_same_image(model: WebUI, runs: Runs, text: float, image: float) -> None:
    """A scale next to the short cut's needs all rows, and the image is next to the short cut's."""
    short = runs.first(model, edited(SMALL, text_scale=text, image_scale=image))
    full = runs.first(model, edited(SMALL, text_scale=text, image_scale=image + 1e-6))
    assert largest_difference(short.images[0], full.images[0]) <= ROUNDING


def test_the_second_pass_has_a_source_and_scales_of_its_own(model: WebUI, runs: Runs) -> None:
    jobs = [edited(HIRES), edited(HIRES, hires_source="first pass"), edited(HIRES, hires_image_scale=3.0)]
    assert len({runs.first(model, job).pixels for job in jobs}) == 3


@pytest.mark.parametrize("case", [BASE, {**BASE, "sampler_name": "DDIM"}, HIRES], ids=["Euler a", "DDIM", "Hires.fix"])
def test_an_uploaded_mask_says_where_which_scale_counts(model: WebUI, runs: Runs, case: JSON) -> None:
    close, far = (runs.first(model, edited(case, image_scale=scale)) for scale in (3.0, 1.2))
    scales = {"image_scale": 3.0, "mask_image_scale": 1.2}
    black, white, right = (runs.first(model, edited(case, mask=name, **scales)) for name in (BLACK, WHITE, RIGHT))
    assert black.pixels == close.pixels
    assert white.pixels == far.pixels
    assert right.pixels not in (close.pixels, far.pixels)
    assert generate(model, edited(case, mask=RIGHT, **scales)).pixels == right.pixels
    assert "InstructPix2Pix mask: " in right.infotexts[0]
    assert "error" not in right.infotexts[0]


def test_the_tabs_mask_says_where_which_scale_counts_and_nothing_is_inpainted(model: WebUI, runs: Runs) -> None:
    scales = {"image": None, "image_scale": 3.0, "mask_image_scale": 1.2}
    close, far = (runs.first(model, edited(IMG2IMG, image=None, image_scale=scale)) for scale in (3.0, 1.2))
    uploaded = runs.first(model, edited(IMG2IMG, mask=RIGHT, **scales))

    def painted(shape: str, **fields: object) -> Generation:
        job = {**IMG2IMG, "mask": shape, "mask_blur": 0, **fields}
        return generate(model, edited(job, tab_mask=True, **scales))

    assert painted(BLACK).pixels == close.pixels
    assert painted(WHITE).pixels == far.pixels
    right = painted(RIGHT)
    assert right.pixels == uploaded.pixels
    assert right.pixels not in (close.pixels, far.pixels)
    assert painted(mask(255, 0), inpainting_mask_invert=1).pixels == right.pixels
    assert painted(RIGHT, mask_blur=16).pixels not in (right.pixels, close.pixels, far.pixels)
    assert "InstructPix2Pix mask: " in right.infotexts[0]
    assert "Mask blur" not in right.infotexts[0]


def test_with_feedback_images(model: WebUI, runs: Runs) -> None:
    """FABRIC's rows are still known when the rows are no longer the host's."""
    job = edited(SMALL)
    fabric = {"FABRIC": {"args": [{"likes": feedback("red"), "dislikes": feedback("blue"), "end": 1.0}]}}
    both = {**job, "alwayson_scripts": {**job["alwayson_scripts"], **fabric}}
    assert runs.first(model, both).pixels != runs.first(model, job).pixels
    assert generate(model, both).pixels == runs.first(model, both).pixels
    assert "FABRIC error" not in runs.first(model, both).infotexts[0]


@pytest.mark.parametrize("script", ["selfattention", "perturbedattention", "dynamicthres"])
def test_beside_what_a_fork_has_built_in(model: WebUI, runs: Runs, script: str) -> None:
    job = edited({**BASE, "cfg_scale": 9}, image_scale=2.0)
    made = runs.first(model, built_in(model, script, job))
    assert "InstructPix2Pix image" in made.infotexts[0]
    assert "InstructPix2Pix error" not in made.infotexts[0]
    assert made.pixels != runs.first(model, job).pixels


def test_a_step_without_uncond_rows_has_no_guidance(model: WebUI, runs: Runs) -> None:
    job = {**SMALL, "override_settings": {"skip_early_cond": 1.0}}
    one, other = edited(job, image_scale=1.5), edited(job, image_scale=3.0, text_scale=1.0)
    assert largest_difference(runs.first(model, one).images[0], runs.first(model, other).images[0]) <= ROUNDING


def test_off_means_off(model: WebUI, runs: Runs) -> None:
    """Before and after jobs of ours, and with the method named but switched off."""
    job = {**IMG2IMG, "image_cfg_scale": 1.7}
    before = runs.first(model, job)
    generate(model, edited(job))
    assert generate(model, job).pixels == before.pixels
    off = {**job, "alwayson_scripts": {"InstructPix2Pix": {"args": [{"enabled": False}]}}}
    assert generate(model, off).pixels == before.pixels
    assert "InstructPix2Pix" not in generate(model, off).infotexts[0]


def test_a_fork_without_the_method_says_what_to_turn_on(model: WebUI) -> None:
    if not model.installation.host.guesses:
        pytest.skip("this WebUI edits in img2img by itself")
    for job in (SMALL, IMG2IMG):
        with pytest.raises(ApiError, match="Turn on InstructPix2Pix"):
            model.client.generate(job)
    before = len(model.log())
    assert "error" not in model.client.generate(edited(SMALL)).infotexts[0]
    assert model.errors(before) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"image_scal": 1}, "image_scale"), ({"image": "/etc/passwd"}, "not accepted"), ({"image_scale": 99}, "0 and 10")],
)
def test_a_bad_request_is_refused_with_a_sentence(model: WebUI, fields: JSON, sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as refusal:
        model.client.generate(edited(SMALL, **fields))
    assert refusal.value.status == 422


def test_a_merged_checkpoint_is_loaded_and_edits(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory, model: WebUI
) -> None:
    """`run.py merge-instruct`, of the plain checkpoint and the one that sees an image."""
    merge = pytest.importorskip("standalone.engine.merge")
    plain, instruct = installation.checkpoint, model.installation.checkpoint
    out = tmp_path_factory.mktemp("merged") / "merged.safetensors"
    try:
        merge.merge_instruct(plain, instruct, plain, out)
    except merge.UserError as reason:
        pytest.skip(f"the checkpoints are of different builds: {reason}")
    other = dataclasses.replace(installation, checkpoint=out)
    with serving(other, tmp_path_factory.mktemp("webui-merged"), {PACK_NAME: REPO}) as server:
        near, far = (server.client.generate(edited(SMALL, image_scale=scale)) for scale in (1.2, 3.0))
        assert "error" not in near.infotexts[0]
        assert near.pixels != far.pixels
        assert server.errors() == []


def test_another_checkpoint_is_told_what_is_needed(with_pack: WebUI) -> None:
    answer = with_pack.client.generate(edited(SMALL))
    assert "InstructPix2Pix error: " in answer.infotexts[0]
    assert "8 input channels" in answer.infotexts[0]
