"""scripts/pix2pix_zero.py in a running host: arguments, controls, infotext, sheets, axes, refusals, and company."""

from __future__ import annotations

from contextlib import closing
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lib_methods.pictures.composites import Composites
from lib_methods.pictures.convert import open_image
from lib_methods.pix2pix_zero import apply
from lib_methods.pix2pix_zero.session import PSNR_KEY
from lib_methods.pix2pix_zero.settings import CONTROLS
from standalone.api.codec import png_bytes
from tests.fabric.small_model import picture
from tests.pix2pix_zero.jobs import CAPTION, HIRES, IMG2IMG, TARGET, TXT2IMG, edit, left
from tests.shared import jobs
from tests.shared.jobs import loaded, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

CHOICES = {"gradient", "soft blend", "off"}


@pytest.fixture
def script(host: Running) -> ModuleType:
    """The script as the host has loaded it."""
    return loaded("pix2pix_zero.py")


def asked(**fields: Any) -> dict[str, Any]:
    (named,) = edit(**fields)["pix2pix-zero"]
    return dict(named)


@pytest.mark.parametrize("is_img2img", [False, True])
def test_the_controls_are_the_request_in_order_with_its_defaults(
    host: Running, script: ModuleType, is_img2img: bool
) -> None:
    for named in jobs.first_values(script.Pix2PixZeroScript(), is_img2img, CONTROLS.names):
        assert named.pop("enabled") is False
        assert named == CONTROLS.defaults


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"strength": 1.5, "structure": 0.2, "start": 0.2, "end": 0.8, "layers": "fine", "caption": "a circle, on grey"},
        {"guidance": "soft blend", "inversion": "direct", "refinements": 2, "regularisation": "as published"},
        {"mask": encoded(picture(3)), "mask_mode": "keep white", "caption_as_negative": False},
        {"mask_mode": "by word", "mask_word": "red", "mask_level": 0.5, "words_are": "adjective"},
    ],
)
def test_the_infotext_brings_the_picture_back(host: Running, fields: dict[str, Any]) -> None:
    job = host.generate(script_args=edit(**fields), **IMG2IMG)
    shown = jobs.fields_of(job, CONTROLS.title)
    assert CONTROLS.error_key not in shown
    assert shown[PSNR_KEY] == "exact" or shown[PSNR_KEY].endswith(" dB")
    again = [key(shown) for key in CONTROLS.paste_keys()]
    assert again[0] is True
    made = host.generate(script_args={"pix2pix-zero": again}, **IMG2IMG)
    assert same(job, made)
    assert job.infotexts[0] == made.infotexts[0]


@pytest.mark.parametrize("guidance", sorted(CHOICES))
def test_a_sheet_for_every_picture(host: Running, guidance: str) -> None:
    """After the images, of the same height, with source, reconstruction, edit and attention side by side."""
    fields = {"target": f"{TARGET}|grey", "show": True, "guidance": guidance}
    made = host.generate(script_args=edit(**fields), batch_size=2, n_iter=2, **IMG2IMG)
    bare = host.generate(script_args=edit(**{**fields, "show": False}), batch_size=2, n_iter=2, **IMG2IMG)
    assert len(bare.images) == len(bare.infotexts) == 4 + bare.index_of_first_image
    count = len(bare.images)
    assert len(made.images) == len(made.infotexts) == count + 4
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(made.images, bare.images))
    for index, sheet in enumerate(made.images[count:]):
        side, column, gap, line = 64, 92, 8, 22
        assert sheet.size == (4 * (column + gap) - gap, side + line)
        shown = np.asarray(sheet)[line:, 2 * (column + gap) : 2 * (column + gap) + side].astype(int)
        wanted = np.asarray(made.images[made.index_of_first_image + index]).astype(int)
        assert np.abs(shown - wanted).max() <= 1
        assert "Reconstruction PSNR: " in made.infotexts[count + index]
        assert Composites().holds(open_image(png_bytes(sheet))), "nobody is offered to like it"
        assert not Composites().holds(open_image(png_bytes(made.images[made.index_of_first_image + index])))


def test_a_sheet_has_what_there_is(host: Running) -> None:
    """No reconstruction of a generated image, no attention of a word that is not in the caption; sizes of Hires.fix."""
    drawn = host.generate(script_args=edit(show=True), **TXT2IMG)
    assert drawn.images[-1].size == (3 * 100 - 8, 64 + 22)
    other = host.generate(script_args=edit(show=True, source="horse"), **IMG2IMG)
    assert other.images[-1].size == (3 * 100 - 8, 64 + 22)
    large = host.generate(script_args=edit(show=True), **HIRES)
    assert large.images[0].size == (96, 96)
    assert large.images[-1].size == (3 * 100 - 8, 64 + 22)


@pytest.mark.parametrize("by_the_prompt", [False, True])
def test_the_caption_is_the_prompts_where_that_is_empty(host: Running, by_the_prompt: bool) -> None:
    full = host.generate(script_args=edit(caption_as_negative=True), **IMG2IMG)
    job = {**IMG2IMG, "prompt": CAPTION if by_the_prompt else ""}
    assert same(full, host.generate(script_args=edit(caption=CAPTION, caption_as_negative=True), **job))
    negative = {**IMG2IMG, "negative_prompt": CAPTION}
    assert same(full, host.generate(script_args=edit(), **negative))
    assert not same(full, host.generate(script_args=edit(), **IMG2IMG))
    assert "Negative prompt" not in full.infotexts[0]


def test_a_prompt_that_changes_on_the_way_shows_what_it_ends_with(host: Running) -> None:
    job = {**IMG2IMG, "prompt": "a [red:blue:0.5] circle"}
    assert same(
        host.generate(script_args=edit(), **job), host.generate(script_args=edit(caption="a blue circle"), **job)
    )


GIVEN_UP: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no caption": ({}, {"prompt": ""}, "Describe the image"),
    "a word outside of the caption": ({"mask_mode": "by word", "mask_word": "horse"}, {}, '"horse" is not in the'),
    "a sampler that needs noise": ({}, {"sampler_name": "LCM"}, "needs new noise"),
    "no direction": ({"directions": "cat to dog"}, {}, 'There is no direction "cat to dog"'),
    "source and target alike": ({"target": "Circle"}, {}, "are the same"),
    "a picture too small": ({"layers": "coarse"}, {}, "no attention to the prompt"),
}


@pytest.mark.parametrize("name", GIVEN_UP)
@pytest.mark.parametrize("api", [False, True])
def test_what_cannot_be_done_is_said_and_the_job_is_as_without_it(host: Running, name: str, api: bool) -> None:
    fields, changes, sentence = GIVEN_UP[name]
    job = {**IMG2IMG, **changes}
    plain = host.generate(**job)
    from modules.processing import process_images

    with closing(host.make(script_args=edit(show=True, **fields), **job)) as p:
        p.is_api = api
        made = host.host.queue.run(process_images, p)
    assert sentence in made.comments
    if name == "a picture too small":  # known only in the middle: the edit is made, but nothing holds it
        assert CONTROLS.error_key not in jobs.fields_of(made, CONTROLS.title)
        return
    assert same(plain, made)
    assert len(made.images) == len(plain.images)
    assert list(jobs.fields_of(made, CONTROLS.title)) == [CONTROLS.error_key]
    assert left() == []


def test_a_damaged_direction_is_named(host: Running, script: ModuleType) -> None:
    script.DIRECTIONS.mkdir(parents=True, exist_ok=True)
    file = script.DIRECTIONS / "broken.safetensors"
    file.write_bytes(b"rubbish")
    try:
        made = host.generate(script_args=edit(directions="broken"), **IMG2IMG)
    finally:
        file.unlink()
    assert "damaged" in made.comments
    assert str(script.DIRECTIONS) not in made.comments + made.info


def test_an_internal_error_is_not_hidden(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(apply, "attach", fail)
    made = host.generate(script_args=edit(), **TXT2IMG)
    assert "internal error" in made.comments
    assert "secret" not in made.info
    assert same(made, host.generate(**TXT2IMG))


def test_a_job_used_again_carries_nothing_over(host: Running) -> None:
    from modules.processing import process_images
    from standalone.host.scripts.loading import runner_of

    with closing(host.make(script_args=edit(show=True), **IMG2IMG)) as p:
        on = host.host.queue.run(process_images, p)
        p.script_args = tuple(runner_of(True).default_args())
        off = host.host.queue.run(process_images, p)
    assert CONTROLS.title in on.info
    assert CONTROLS.title not in off.info
    assert len(off.images) == 1
    assert same(off, host.generate(**IMG2IMG))


def test_axes_for_strength_and_structure(host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules.processing import process_images

    axes = {option.label: option for option in jobs.plot_axes(script, monkeypatch)}
    assert list(axes) == [f"[{CONTROLS.title}] Strength", f"[{CONTROLS.title}] Structure"]
    with closing(host.make(script_args=edit(), **IMG2IMG)) as p:
        for label, value in ((f"[{CONTROLS.title}] Strength", 2.0), (f"[{CONTROLS.title}] Structure", 0.5)):
            axes[label].apply(p, value, [value])
        cell = host.host.queue.run(process_images, p)
    assert same(cell, host.generate(script_args=edit(strength=2.0, structure=0.5), **IMG2IMG))
    fields = jobs.fields_of(cell, CONTROLS.title)
    assert (fields[CONTROLS.keys["strength"]], fields[CONTROLS.keys["structure"]]) == ("2", "0.5")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([{"source": "cat", "target": "dog"}], 200),
        ([True, "cat", "dog"], 200),
        ([{"source": "cat", "target": "cat"}], 422),
        ([{"source": "cat"}], 422),
        ([{"source": "cat", "target": "dog", "mask": "../../etc/passwd"}], 422),
        ("cat", 422),
    ],
)
def test_the_api_refuses_what_cannot_be_used(script: ModuleType, arguments: Any, status: int) -> None:
    answer = jobs.posted(script, CONTROLS.title, arguments, "/sdapi/v1/img2img")
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["detail"].startswith(f"{CONTROLS.title}: ")


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("job", [IMG2IMG, TXT2IMG], ids=["img2img", "txt2img"])
def test_together_with_fabric_and_guidance(
    host: Running, sampler: str, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its part in the image, whichever script comes first."""
    from standalone.host.scripts.loading import runner_of

    others: dict[str, list[Any]] = {
        "fabric": [{"likes": [encoded(picture(1))], "end": 1.0}],
        "guidance": [{"skimming_scale": 1.5}],
    }
    job = {**job, "sampler_name": sampler, "cfg_scale": 9.0}
    together = {**edit(structure=0.1), **others}
    made = host.generate(script_args=together, **job)
    assert "error" not in made.infotexts[0]
    for name in together:
        rest = {other: arguments for other, arguments in together.items() if other != name}
        assert not same(made, host.generate(script_args=rest, **job))
    runner = runner_of(job["kind"] == "img2img")
    monkeypatch.setattr(runner, "alwayson_scripts", list(reversed(runner.alwayson_scripts)))
    assert same(made, host.generate(script_args=together, **job))
    assert left() == []


def test_the_line_says_what_will_happen_or_what_is_wrong(script: ModuleType) -> None:
    method, defaults = script.Pix2PixZeroScript(), CONTROLS.defaults
    method.is_img2img = True
    words = {**defaults, "source": "cat", "target": "dog"}
    assert "cat to dog in the tab" in method.line(True, *words.values(), 20)
    assert "Switched off (cat to dog" in method.line(False, *words.values(), 20)
    assert "source is empty" in method.line(True, *defaults.values(), 20)
    assert 'role="alert"' not in method.line(False, *defaults.values(), 20), "a fresh page has nothing wrong"


@pytest.mark.parametrize(
    ("sampler", "changed", "is_img2img", "sentence"),
    [
        ("DPM adaptive", {}, True, "chooses its noise levels"),
        ("LCM", {}, True, "Choose another one, such as Euler"),
        ("Restart", {}, False, "goes back to higher noise"),
        ("Restart", {}, True, ""),  # how many of the steps are made is for the job to say
        ("DDIM", {"inversion": "ddpm"}, True, "Choose that sampler"),
        ("DDIM", {"inversion": "ddpm"}, False, ""),
        ("Euler a", {"inversion": "ddpm"}, True, ""),
        ("UniPC", {}, True, ""),
    ],
)
def test_the_line_names_a_sampler_that_cannot_work_before_the_job(
    host: Running,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    changed: dict[str, Any],
    is_img2img: bool,
    sentence: str,
) -> None:
    from modules import sd_samplers

    others: dict[str, Any] = {  # that this host has not
        "DPM adaptive": lambda model, x, sigma_min, sigma_max: None,
        "Restart": lambda model, x, sigmas, restart_list=None: None,
    }
    if sampler in others:
        config = SimpleNamespace(name=sampler, constructor=lambda model, funcname=others[sampler]: None)
        monkeypatch.setattr(sd_samplers, "find_sampler_config", lambda name: config)
    method = script.Pix2PixZeroScript()
    method.is_img2img = is_img2img
    values = {**CONTROLS.defaults, "source": "cat", "target": "dog", **changed}.values()
    line = method.line(True, *values, 20, sampler)
    assert ("steer-problem" in line) == bool(sentence) and sentence in line
    assert "steer-problem" not in method.line(False, *values, 20, sampler)


def test_a_sampler_is_looked_for_in_the_hosts_own_k_diffusion(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reForge has one: what makes its samplers knows their names, and where they are."""
    from lib_methods.hosts import models
    from modules import sd_samplers

    own = SimpleNamespace(sample_own=lambda model, x, sigmas, noise_sampler=None: None)
    make = FunctionType((lambda model, funcname: None).__code__, {"sampling": own}, argdefs=("sample_own",))
    config = SimpleNamespace(name="Own", constructor=make)
    monkeypatch.setattr(sd_samplers, "find_sampler_config", lambda name: config)
    found = models.chosen_sampler("Own", 20)
    assert found is not None and found.needs_noise
