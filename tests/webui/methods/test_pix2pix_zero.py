"""pix2pix-zero in the real WebUI, over the REST API: what becomes of images."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from tests.webui.client import JSON, Generation, encode_image
from tests.webui.edits import (
    CAPTION,
    ERROR,
    IMG2IMG,
    SCENE,
    SHORT,
    SIDE,
    SOURCE,
    TITLE,
    TXT2IMG,
    edited,
    half,
    panels,
    psnr,
    seen,
)
from tests.webui.jobs import Runs, feedback, generate, largest_difference
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "pix2pix_zero.py").is_file(), reason="the script is not there"),
]
GREEN, RED = SCENE.as_dict(), {**SCENE.as_dict(), "colour": "red"}
SAMPLERS = ("Euler", "DDIM", "DPM++ 2M", "UniPC")
SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)
LEFT, RIGHT = (0, 0, SIDE // 2 - 8, SIDE), (SIDE // 2 + 8, 0, SIDE, SIDE)
PSNR = re.compile(rf"{TITLE} reconstruction PSNR: ([^,\n]+)")
HIRES: JSON = {
    **TXT2IMG,
    "enable_hr": True,
    "hr_scale": 1.5,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.5,
    "hr_second_pass_steps": 8,
}


@pytest.fixture
def shapes(with_pack: WebUI) -> WebUI:
    """A WebUI whose model generates what the parser reads."""
    if with_pack.installation.checkpoint.name != "shapes.safetensors":
        pytest.skip("only `shapes` draws pictures that the parser reads")
    return with_pack


def made(server: WebUI, runs: Runs, job: JSON, count: int = 1) -> Generation:
    """The answer to an edit, which must be in order: images with their sheets, the words in the infotext."""
    answer = runs.first(server, job)
    assert len(answer.images) == 2 * count
    for text in answer.infotexts[:count]:
        assert f"{TITLE} source: green" in text
        assert ERROR not in text
    return answer


def unchanged(server: WebUI, runs: Runs, answer: Generation) -> Generation:
    """The autoencoder's round trip: img2img that changes nothing. Random weights change even that; there the image that
    the edit's sheet shows as its source."""
    if server.installation.host.guesses:
        return Generation((panels(answer.images[-1])[0],), ())
    return runs.first(server, {**IMG2IMG, "denoising_strength": 0.0})


def close(one: Generation, other: Generation, box: tuple[int, int, int, int] | None = None) -> float:
    return psnr(one.images[0], other.images[0], box)


@SAMPLER
def test_the_colour_changes_and_nothing_else(shapes: WebUI, runs: Runs, sampler: str) -> None:
    assert seen(SOURCE) == GREEN
    answer = made(shapes, runs, edited({**IMG2IMG, "sampler_name": sampler}))
    assert seen(answer.images[0]) == RED
    source, again, edit, attention = panels(answer.images[1])
    assert seen(source) == seen(again) == GREEN
    assert largest_difference(edit, answer.images[0]) <= 1
    assert largest_difference(attention, source) > 20


@SAMPLER
def test_every_sampler_repeats_and_tells(with_pack: WebUI, runs: Runs, sampler: str) -> None:
    job = edited({**IMG2IMG, **SHORT, "sampler_name": sampler})
    first = made(with_pack, runs, job)
    assert generate(with_pack, job).pixels == first.pixels
    for field in ("target: red", "words are: adjective"):
        assert f"{TITLE} {field}" in first.infotexts[0]
    found = PSNR.search(first.infotexts[0])
    assert found is not None
    value = re.fullmatch(r"(-?[0-9.]+) dB", found[1])
    assert value is not None
    if not with_pack.installation.host.guesses:  # random weights lead anywhere
        assert float(value[1]) > 5


MORE: dict[str, JSON] = {
    "Heun": {**SHORT, "sampler_name": "Heun"},
    "PLMS": {**SHORT, "sampler_name": "PLMS"},
    "Karras": {**SHORT, "scheduler": "Karras"},
    "two of two": {**SHORT, "batch_size": 2, "n_iter": 2},
    "another aspect": {**SHORT, "width": 96, "resize_mode": 1},
    "AND": {**SHORT, "prompt": f"{CAPTION} AND circles :0.5"},
    "long prompt": {**SHORT, "prompt": f"{CAPTION}{', plain' * 60}"},
    "rows in slices": {**SHORT, "override_settings": {"batch_cond_uncond": False}},
    "skipped uncond": {**SHORT, "override_settings": {"skip_early_cond": 0.5}},
    "token merging": {**SHORT, "override_settings": {"token_merging_ratio": 0.5}},
    "denoising strength .6": {"steps": 10, "denoising_strength": 0.6},
    "a negative prompt of its own": {**SHORT, "negative_prompt": "small squares"},
    "CFG scale 1": {**SHORT, "cfg_scale": 1},
}


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("name", MORE)
def test_every_kind_of_job_is_edited(with_pack: WebUI, runs: Runs, name: str, kind: str) -> None:
    if kind == "txt2img" and name == "denoising strength .6":
        pytest.skip("is of img2img")
    case = {**(IMG2IMG if kind == "img2img" else TXT2IMG), **MORE[name]}
    count = case.get("batch_size", 1) * case.get("n_iter", 1)
    plain, edit = runs.first(with_pack, case), made(with_pack, runs, edited(case), count)
    assert [image.size for image in edit.images[:count]] == [image.size for image in plain.images]
    assert all(one != other for one, other in zip(edit.pixels, plain.pixels))
    assert generate(with_pack, edited(case)).pixels == edit.pixels
    assert all(bool(PSNR.search(text)) == (kind == "img2img") for text in edit.infotexts[:count])


def test_a_batch_takes_targets_in_turn(shapes: WebUI, runs: Runs) -> None:
    job = {**IMG2IMG, "batch_size": 2}
    both = made(shapes, runs, edited(job, target="red | blue"), count=2)
    assert [seen(image)["colour"] for image in both.images[:2]] == ["red", "blue"]
    assert [seen(image)["kind"] for image in both.images[:2]] == ["circle", "circle"]
    for sheet, image in zip(both.images[2:], both.images):
        assert largest_difference(panels(sheet)[2], image) <= 1
    alone = made(shapes, runs, edited(IMG2IMG))
    assert psnr(both.images[0], alone.images[0]) > 30


def test_txt2img_is_edited_beside_what_the_prompt_gives(shapes: WebUI, runs: Runs) -> None:
    plain = runs.first(shapes, TXT2IMG)
    answer = made(shapes, runs, edited(TXT2IMG))
    before, after = seen(plain.images[0]), seen(answer.images[0])
    assert before["colour"] == "green"
    assert after == {**before, "colour": "red"}
    source, edit, _ = panels(answer.images[1])
    assert psnr(source, plain.images[0]) > 30, "the sheet shows what the prompt gives without the edit"
    assert largest_difference(edit, answer.images[0]) <= 1


def test_hires_fix_goes_on_with_the_edit(shapes: WebUI, runs: Runs) -> None:
    plain, edit = runs.first(shapes, HIRES), runs.first(shapes, edited(HIRES))
    assert edit.images[0].size == plain.images[0].size == (96, 96)
    assert seen(plain.images[0])["colour"] == "green"
    assert seen(edit.images[0])["colour"] == "red"
    assert f"{TITLE} source: green" in edit.infotexts[0] and ERROR not in edit.infotexts[0]
    assert generate(shapes, edited(HIRES)).pixels == edit.pixels


def test_each_pass_of_hires_fix_may_have_a_sampler_of_its_own(with_pack: WebUI, runs: Runs) -> None:
    mixed = {**HIRES, **SHORT, "hr_sampler_name": "DDIM", "hr_second_pass_steps": 4}
    edit = runs.first(with_pack, edited(mixed))
    assert ERROR not in edit.infotexts[0]
    assert edit.pixels[0] != runs.first(with_pack, mixed).pixels[0]
    noisy = {**mixed, "hr_sampler_name": "Euler a"}  # noise is no hindrance to the direction, which is all there is
    assert ERROR not in runs.first(with_pack, edited(noisy)).infotexts[0]


@SAMPLER
def test_strength_0_with_direct_inversion_gives_the_picture_again(with_pack: WebUI, runs: Runs, sampler: str) -> None:
    case = {**IMG2IMG, **SHORT, "sampler_name": sampler}
    answer = made(with_pack, runs, edited(case, strength=0, inversion="direct"))
    # a solver of higher order takes its own way between the levels: exact for those of first order only
    assert close(answer, unchanged(with_pack, runs, answer)) > (35 if sampler in ("Euler", "DDIM") else 26)
    found = PSNR.search(answer.infotexts[0])
    assert found is not None and found[1] == "exact"
    assert close(answer, runs.first(with_pack, case)) < 25, "the job itself draws another picture"


def test_strength_leads_away_from_the_picture(shapes: WebUI, runs: Runs) -> None:
    case = {**IMG2IMG, **SHORT}
    round_trip = runs.first(shapes, {**IMG2IMG, "denoising_strength": 0.0})
    near = [close(made(shapes, runs, edited(case, strength=value)), round_trip) for value in (0, 0.5, 1)]
    assert near == sorted(near, reverse=True)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_euler_a_keeps_its_noise(with_pack: WebUI, runs: Runs, eta: float) -> None:
    """In img2img with the noise that the image takes, in txt2img with its own."""
    for case in (IMG2IMG, TXT2IMG):
        job = {**case, **SHORT, "sampler_name": "Euler a", "override_settings": {"eta_ancestral": eta}}
        plain = runs.first(with_pack, job)
        still = made(with_pack, runs, edited(job, strength=0, inversion="ddpm"))
        assert close(still, plain if case is TXT2IMG else unchanged(with_pack, runs, still)) > 35
        changed = made(with_pack, runs, edited(job, inversion="ddpm"))
        assert changed.pixels[0] != still.pixels[0]
        assert f"{TITLE} note" not in changed.infotexts[0]
        assert ("Eta: 0.5" in changed.infotexts[0]) == (eta == 0.5)
        assert generate(with_pack, job).pixels == plain.pixels


def test_euler_a_changes_the_colour_with_its_noise_and_without(shapes: WebUI, runs: Runs) -> None:
    job = {**IMG2IMG, "sampler_name": "Euler a"}
    assert seen(made(shapes, runs, edited(job)).images[0]) == RED
    with_noise = made(shapes, runs, edited({**job, "denoising_strength": 0.6}, inversion="ddpm"))
    assert seen(with_noise.images[0])["colour"] == "red"


@pytest.mark.parametrize("fields", [{"guidance": "soft blend", "structure": 0.5}, {"guidance": "off", "strength": 1.5}])
def test_other_guidances(shapes: WebUI, runs: Runs, fields: JSON) -> None:
    answer = made(shapes, runs, edited(IMG2IMG, **fields))
    assert seen(answer.images[0])["colour"] == "red"
    assert answer.pixels[0] != made(shapes, runs, edited(IMG2IMG)).pixels[0]


def test_every_setting_counts(with_pack: WebUI, runs: Runs) -> None:
    case = {**IMG2IMG, **SHORT}
    forms: list[JSON] = [
        {},
        {"strength": 0.7},
        {"structure": 0.8},
        {"end": 0.5},
        {"start": 0.5},
        {"inversion": "direct"},
        {"regularisation": "paper"},
        {"refinements": 2},
        {"caption": "green circles"},
        {"caption_as_negative": True},
    ]
    if not with_pack.installation.host.guesses:  # which take the direction from the caption, as it is
        forms.append({"words_are": "object"})
    assert len({made(with_pack, runs, edited(case, **form)).pixels[0] for form in forms}) == len(forms)
    saved, held = (made(with_pack, runs, edited(case, save_memory=value)) for value in (True, False))
    assert largest_difference(saved.images[0], held.images[0]) <= 2
    hidden = runs.first(with_pack, edited(case, show=False))
    assert hidden.pixels == saved.pixels[:1]


def test_a_mask_says_where_it_may_change(shapes: WebUI, runs: Runs) -> None:
    """The autoencoder of `shapes` looks at the whole image, so what is kept is the same in latents only."""
    case = {**IMG2IMG, **SHORT}
    direct = {"inversion": "direct"}
    kept = made(shapes, runs, edited(case, strength=0, **direct))
    everywhere = made(shapes, runs, edited(case, **direct))

    def masked(mask: str, mode: str = "change white") -> Generation:
        return made(shapes, runs, edited(case, mask_mode=mode, mask=mask, **direct))

    assert close(masked(half(0, 0)), kept) > 35
    assert close(masked(half(255, 255)), everywhere) > 35
    right = masked(half(0, 255))
    assert close(right, kept, LEFT) > close(everywhere, kept, LEFT) + 3
    assert close(right, everywhere, RIGHT) > close(right, kept, RIGHT) + 3
    assert masked(half(255, 0), "keep white").pixels == right.pixels
    name = re.search(rf"{TITLE} mask: ([0-9a-f]{{16,64}})\b", right.infotexts[0])
    assert name is not None
    assert masked(name[1]).pixels == right.pixels


def test_a_mask_by_word_keeps_the_ground(shapes: WebUI, runs: Runs) -> None:
    """The model is told to change the ground as well; where the circles are is all that may change."""
    fields = {"source": "circle", "target": "square", "words_are": "object", "inversion": "direct"}
    answers = [
        runs.first(shapes, edited({**IMG2IMG, **SHORT}, **fields, **more))
        for more in ({}, {"mask_mode": "by word", "mask_word": "circles"}, {"mask_mode": "by word"})
    ]
    assert all(ERROR not in answer.infotexts[0] for answer in answers)
    everywhere, plural, source = answers
    assert plural.pixels[0] == source.pixels[0], "a plural is the word, too"
    round_trip = runs.first(shapes, {**IMG2IMG, "denoising_strength": 0.0})
    pixels = np.asarray(SOURCE, dtype=np.int16)
    ground = Image.fromarray((np.abs(pixels - pixels[0, 0]).max(axis=2) < 8).astype(np.uint8) * 255)

    def on_ground(answer: Generation) -> float:
        black = Image.new("RGB", ground.size)
        one, other = (Image.composite(made.images[0], black, ground) for made in (answer, round_trip))
        return psnr(one, other)

    assert on_ground(plural) > on_ground(everywhere)


def test_inpainting_edits_inside_of_the_tabs_mask(with_pack: WebUI, runs: Runs) -> None:
    case = {**IMG2IMG, "mask": half(0, 255), "mask_blur": 0, "inpainting_fill": 1}
    if with_pack.installation.host.guesses:  # random weights need no good image
        case |= SHORT
    plain, answer = runs.first(with_pack, case), made(with_pack, runs, edited(case))
    image = answer.images[0]
    assert psnr(image, SOURCE, (0, 0, SIDE // 2, SIDE)) == float("inf"), "what the mask keeps is the same"
    for other in (SOURCE, plain.images[0]):
        assert psnr(image, other, RIGHT) < 35
    if not with_pack.installation.host.guesses:
        red, green = (np.asarray(image.crop(RIGHT), dtype=np.int16)[..., channel] for channel in (0, 1))
        assert ((red - green) > 80).mean() > 0.1, "red circles in the right half"
        assert ((green - red) > 60).mean() < 0.02, "and no green ones"


def test_the_infotext_alone_gives_the_edit_again(with_pack: WebUI, runs: Runs) -> None:
    """As pasting it into the page does: every control comes back. The host's img2img reads only scripts from it."""
    several = {"strength": 0.75, "layers": "fine", "inversion": "direct", "caption": 'green, "b": c', "end": 0.5}
    for case, given in ((TXT2IMG, {}), (IMG2IMG, {**IMG2IMG, **SHORT})):
        for fields in ({}, several, {"mask_mode": "change white", "mask": half(0, 255), "guidance": "soft blend"}):
            answer = runs.first(with_pack, edited({**case, **SHORT}, **fields))
            again = generate(with_pack, {**given, "infotext": answer.infotexts[0]})
            assert again.infotexts == answer.infotexts
            assert again.pixels == answer.pixels


def test_together_with_fabric_and_guidance_all_act(with_pack: WebUI, runs: Runs) -> None:
    case = edited({**IMG2IMG, **SHORT})
    fabric = {"FABRIC": {"args": [{"likes": feedback("red", size=(SIDE, SIDE)), "end": 1.0}]}}
    guidance = {"Guidance": {"args": [{"skimming_scale": 3}]}}
    ours = case["alwayson_scripts"]
    jobs = [{**case, "alwayson_scripts": {**ours, **more}} for more in ({}, fabric, guidance, {**fabric, **guidance})]
    answers = [made(with_pack, runs, job) for job in jobs]
    assert all("error" not in answer.infotexts[0] for answer in answers)
    assert len({answer.pixels[0] for answer in answers}) == len(jobs)
    turned = {**case, "alwayson_scripts": {**guidance, **fabric, **ours}}
    assert generate(with_pack, turned).pixels == answers[-1].pixels


def test_a_picture_that_is_not_square_keeps_its_aspect(shapes: WebUI, runs: Runs) -> None:
    from standalone.shapes.world import render

    wide = Image.fromarray(render(SCENE, np.random.default_rng(6), 96, 64))
    job = {**IMG2IMG, "init_images": [encode_image(wide)], "width": 96}
    answer = made(shapes, runs, edited(job))
    assert answer.images[0].size == (96, 64)
    assert seen(answer.images[0])["colour"] == "red"
