"""Every sampler of the host draws an edit, without its own noise if need be, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from lib_methods.pix2pix_zero import apply, infotext
from lib_methods.pix2pix_zero.request import TITLE
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, edit, left
from tests.shared.jobs import REPO, fields_of, same
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
    "LCM": "cannot do without",
    "DPM fast": "picks its noise levels",
    "DPM adaptive": "picks its noise levels",
    "Restart": "goes back up",
}


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


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
    assert infotext.ERROR_KEY not in made.infotexts[0]
    assert (infotext.PSNR_KEY in made.infotexts[0]) == (job["kind"] == "img2img")
    assert not same(made, host.generate(script_args=edit(strength=0), **job))
    assert left() == []


@pytest.mark.parametrize("sampler", sorted(STOCHASTIC))
@pytest.mark.parametrize("job", [IMG2IMG, TXT2IMG], ids=["img2img", "txt2img"])
def test_stochastic_ones_draw_it_without_their_noise(host: Running, sampler: str, job: dict[str, Any]) -> None:
    """As if eta were 0, whatever the user's is; the infotext does not name an eta that was not used."""
    there(sampler)
    job = {**job, "sampler_name": sampler}
    by_hand = host.generate(script_args=edit(structure=0.1), **job, eta=0.0)
    assert infotext.NOTE_KEY not in fields_of(by_hand, TITLE)
    for eta in (None, 0.5):
        plain = host.generate(**job, eta=eta)
        made = host.generate(script_args=edit(structure=0.1), **job, eta=eta)
        assert same(made, by_hand)
        told = fields_of(made, "")
        assert told[infotext.NOTE_KEY] == apply.WITHOUT_NOISE
        assert apply.WITHOUT_NOISE in made.comments
        assert infotext.ERROR_KEY not in told
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
    assert infotext.NOTE_KEY in made.info
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


@pytest.mark.parametrize("sampler", OTHERS)
def test_others_say_why_not_and_draw_what_they_would(host: Running, sampler: str) -> None:
    """Also the negative prompt is the user's again."""
    there(sampler)
    steps = 25 if sampler == "Restart" else 5
    job = {**IMG2IMG, "sampler_name": sampler, "steps": steps, "denoising_strength": 1.0}
    plain = host.generate(**job)
    made = host.generate(script_args=edit(), **job)
    assert OTHERS[sampler] in made.comments
    assert infotext.ERROR_KEY in made.infotexts[0]
    assert same(plain, made)
    assert left() == []
