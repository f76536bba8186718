"""Every sampler of the host draws an edit, or says why it cannot, and then the job is as without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_methods.pix2pix_zero.session import PSNR_KEY
from lib_methods.pix2pix_zero.settings import CONTROLS
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, edit, left
from tests.shared.jobs import REPO, same
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
