"""Edits with every sampler: made or refused with a reason; without the sampler's noise or with the image's."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from lib_methods.pix2pix_zero import apply
from lib_methods.pix2pix_zero.session import NOTE_KEY, PSNR_KEY
from lib_methods.pix2pix_zero.settings import CONTROLS
from tests.hosts.seam import spread
from tests.pix2pix_zero.jobs import HIRES, IMG2IMG, TXT2IMG, away, drawn, edit, interrupted, left, own_latent
from tests.shared.jobs import fields_of, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

STEADY = {"Euler", "Heun", "LMS", "DPM2", "DPM++ 2M", "DDIM", "DDIM CFG++", "PLMS", "UniPC"}
STOCHASTIC = {
    "Euler a",
    "DPM2 a",
    "DPM++ 2S a",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 3M SDE",
}
OTHERS = {
    "LCM": "needs new noise",
    "DPM fast": "chooses its noise levels",
    "DPM adaptive": "chooses its noise levels",
    "Restart": "goes back to higher noise",
}


def test_every_sampler_is_known(host: Running) -> None:
    from modules import sd_samplers

    assert {sampler.name for sampler in sd_samplers.all_samplers} <= STEADY | STOCHASTIC | set(OTHERS)


def there(name: str) -> None:
    from modules import sd_samplers

    if name not in sd_samplers.all_samplers_map:
        pytest.skip("this host has no such sampler")


@pytest.mark.parametrize("sampler", sorted(STEADY))
@pytest.mark.parametrize("job", [IMG2IMG, TXT2IMG], ids=["img2img", "txt2img"])
def test_steady_ones_draw_it(host: Running, sampler: str, job: dict[str, Any]) -> None:
    there(sampler)
    job = {**job, "sampler_name": sampler}
    made = host.generate(script_args=edit(structure=0.1), **job)
    assert CONTROLS.error_key not in made.infotexts[0]
    assert (PSNR_KEY in made.infotexts[0]) == (job["kind"] == "img2img")
    assert not same(made, host.generate(script_args=edit(strength=0), **job))
    assert left() == []


@pytest.mark.parametrize("sampler", OTHERS)
def test_others_say_why_not_and_draw_what_they_would(host: Running, sampler: str) -> None:
    """Also the negative prompt is the user's again."""
    there(sampler)
    steps = 25 if sampler == "Restart" else 5
    job = {**IMG2IMG, "sampler_name": sampler, "steps": steps, "denoising_strength": 1.0}
    plain = host.generate(**job)
    made = host.generate(script_args=edit(), **job)
    assert OTHERS[sampler] in made.comments
    assert CONTROLS.error_key in made.infotexts[0]
    assert same(plain, made)
    assert left() == []


pytestmark = pytest.mark.usefixtures("clean")
EULER_A: dict[str, Any] = {**IMG2IMG, "sampler_name": "Euler a"}
CASES = [(name, IMG2IMG, 0.5) for name in sorted(STOCHASTIC)] + [
    ("Euler a", IMG2IMG, None),
    ("DPM++ SDE", TXT2IMG, None),
    ("DPM++ 2M SDE", TXT2IMG, 0.5),
]
HALF = Image.new("L", (64, 64))
HALF.paste(255, (32, 0, 64, 64))


@pytest.mark.parametrize(("sampler", "job", "eta"), CASES)
def test_stochastic_samplers_draw_it_without_their_noise(
    host: Running, sampler: str, job: dict[str, Any], eta: float | None
) -> None:
    """As if eta were 0, whatever the user's is; the infotext does not name an eta that was not used."""
    there(sampler)
    job = {**job, "sampler_name": sampler}
    by_hand = host.generate(script_args=edit(structure=0.1), **job, eta=0.0)
    assert NOTE_KEY not in fields_of(by_hand, CONTROLS.title)
    plain = host.generate(**job, eta=eta)
    made = host.generate(script_args=edit(structure=0.1), **job, eta=eta)
    assert same(made, by_hand)
    told = fields_of(made, "")
    assert told[NOTE_KEY] == apply.WITHOUT_NOISE
    assert apply.WITHOUT_NOISE in made.comments
    assert CONTROLS.error_key not in told
    assert "Eta" not in told
    again = host.generate(**job, eta=eta)
    assert same(plain, again)
    assert plain.info == again.info
    assert ("Eta" in plain.info) == (eta is not None)
    assert left() == []


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_churn_is_left_out(host: Running, sampler: str) -> None:
    steady = {**IMG2IMG, "sampler_name": sampler}
    churning = {**steady, "s_churn": 2.0}
    made = host.generate(script_args=edit(structure=0.1), **churning)
    assert same(made, host.generate(script_args=edit(structure=0.1), **steady))
    assert NOTE_KEY in made.info
    assert "Sigma churn" not in made.info
    plain = host.generate(**churning)
    assert "Sigma churn: 2" in plain.info
    assert not same(plain, host.generate(**steady))


def test_eta_of_ddim_is_left_out(host: Running) -> None:
    job = {**IMG2IMG, "sampler_name": "DDIM"}
    made = host.generate(script_args=edit(), **job, eta=0.7)
    assert same(made, host.generate(script_args=edit(), **job))
    assert "Eta DDIM" not in made.info
    assert "Eta DDIM: 0.7" in host.generate(**job, eta=0.7).info


@pytest.mark.parametrize(
    ("fields", "eta"),
    [({}, None), ({}, 0.5), ({"guidance": "off"}, None), ({"guidance": "soft blend"}, 0.5)],
)
def test_in_txt2img_euler_a_edits_the_picture_that_it_draws(
    host: Running, fields: dict[str, Any], eta: float | None
) -> None:
    """The edit and what it is held to have the same noise, so nothing needs to be left out."""
    job = {**TXT2IMG, "sampler_name": "Euler a", "eta": eta, "batch_size": 2}
    plain, plainly = host.generate(**job), drawn(host, job, edit=None)
    still = host.generate(script_args=edit(strength=0, **fields), **job)
    assert spread(drawn(host, job, strength=0, **fields), plainly) < 2e-4
    assert NOTE_KEY not in still.info
    assert ("Eta: 0.5" in still.info) == ("Eta: 0.5" in plain.info) == (eta is not None)
    made = drawn(host, job, **fields)
    assert away(made, plainly) > 0.01
    assert spread(made, drawn(host, job, **fields)) == 0
    assert same(plain, host.generate(**job))


def test_the_structure_is_held_to_the_noisy_picture(host: Running) -> None:
    """With strength next to none the guidance has next to nothing to do: the reference has the edit's noise."""
    job = {**TXT2IMG, "sampler_name": "Euler a"}
    assert spread(drawn(host, job, strength=1e-7, structure=0.1), drawn(host, job, edit=None)) < 5e-3


@pytest.mark.parametrize("fields", [{}, {"eta": 0.6}, {"scheduler": "KL Optimal"}, {"cfg_scale": 1.0}, {"steps": 1}])
def test_ddpm_keeps_the_noise_and_finds_the_picture(host: Running, fields: dict[str, Any]) -> None:
    job = {**EULER_A, "cfg_scale": 7.0, "denoising_strength": 1.0, **fields}
    own = own_latent(host, job)
    assert spread(drawn(host, job, strength=0, inversion="ddpm"), own) < 5e-4
    made = host.generate(script_args=edit(inversion="ddpm"), **job)
    assert CONTROLS.error_key not in made.info
    assert NOTE_KEY not in made.info
    assert fields_of(made, CONTROLS.title)[PSNR_KEY] == "exact"
    assert ("Eta: 0.6" in made.info) == ("eta" in fields)
    assert away(drawn(host, job, inversion="ddpm"), own) > 0.01
    assert not same(made, host.generate(script_args=edit(), **job))


@pytest.mark.parametrize("guidance", ["gradient", "soft blend", "off"])
@pytest.mark.parametrize("schedule", ["Automatic", "KL Optimal"])
def test_what_a_mask_keeps_is_the_picture_with_ddpm(host: Running, guidance: str, schedule: str) -> None:
    job = {**EULER_A, "scheduler": schedule}
    mask = {"mask": encoded(HALF), "mask_mode": "change white"}
    made, own = drawn(host, job, inversion="ddpm", guidance=guidance, **mask), own_latent(host, job)
    assert spread(made[..., :4], own[..., :4]) < 5e-4
    assert away(made[..., 4:], own[..., 4:]) > 0.01


def test_with_ddpm_every_image_gets_its_own_edit(host: Running) -> None:
    """As if each had been made alone: a job's seed does not count."""
    targets = ("blue square", "grey")
    alone = [drawn(host, EULER_A, target=target, inversion="ddpm") for target in targets]
    pair = drawn(host, {**EULER_A, "batch_size": 2, "seed": 99}, target="|".join(targets), inversion="ddpm")
    for index in range(2):
        assert spread(pair[index : index + 1], alone[index]) < 1e-3


def test_an_interrupted_ddpm_inversion_goes_on_where_it_was(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(host, EULER_A, inversion="ddpm")
    apply.CACHE.clear()
    interrupted(host, monkeypatch, EULER_A, inversion="ddpm")
    (kept,) = apply.CACHE._kept.values()
    assert kept.done == 3
    assert spread(drawn(host, EULER_A, inversion="ddpm"), whole) == 0


@pytest.mark.parametrize("changes", [{"sampler_name": "Euler"}, {"sampler_name": "DDIM"}, {"eta": 0.0}])
def test_ddpm_is_for_euler_a(host: Running, changes: dict[str, Any]) -> None:
    job = {**EULER_A, **changes}
    plain = host.generate(**job)
    made = host.generate(script_args=edit(inversion="ddpm"), **job)
    assert "for the sampler Euler a" in fields_of(made, CONTROLS.title)[CONTROLS.error_key]
    assert same(plain, made)
    # in txt2img no image must be found
    drawn_one = host.generate(script_args=edit(inversion="ddpm"), **{**TXT2IMG, **changes})
    assert CONTROLS.error_key not in drawn_one.info


def test_the_second_pass_of_hires_fix_has_its_own_eta(host: Running) -> None:
    job = {**HIRES, "sampler_name": "DPM++ SDE", "hr_sampler_name": "Euler a", "eta": 0.5}
    made = host.generate(script_args=edit(), **job)
    assert NOTE_KEY in made.info
    assert "Eta: 0.5" in made.info
    other = host.generate(script_args=edit(), **{**job, "eta": 0.0})
    assert not same(made, other)


@pytest.mark.parametrize("inversion", ["ddim", "ddpm"])
def test_an_error_on_the_way_leaves_the_noise_to_the_next_job(
    host: Running, inversion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_methods.pix2pix_zero.edit import Edit

    def fail(*args: Any) -> None:
        raise RuntimeError("in the middle")

    plain = host.generate(**EULER_A, eta=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Edit, "guide", fail)
        (infotext,) = host.generate(script_args=edit(inversion=inversion), **EULER_A, eta=0.5).infotexts
    assert "pix2pix-zero error: An internal error; " in infotext
    again = host.generate(**EULER_A, eta=0.5)
    assert same(plain, again)
    assert plain.info == again.info
