"""The direction of the caption with either word in jobs of the standalone host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_methods.pix2pix_zero import apply
from lib_methods.pix2pix_zero.settings import CONTROLS
from tests.hosts.seam import spread
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, away, drawn, edit, left, speak_up
from tests.shared import jobs
from tests.shared.jobs import REPO, same
from tests.standalone.conftest import Running

SWAP = {"source": "red", "target": "blue", "direction_from": "caption"}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def host(
    request: pytest.FixtureRequest, start_host: Callable[..., Running], checkpoints: Callable[..., Path]
) -> Running:
    host = start_host(checkpoints(request.param), extension_dirs=[REPO])
    speak_up()
    return host


@pytest.fixture(autouse=True)
def _clean(host: Running) -> Iterator[None]:
    apply.CACHE.clear()
    yield
    assert left() == []


@pytest.mark.parametrize("prompt", ["a red circle", "a (red:1.3) circle", "a red circle " * 30])
def test_at_strength_1_the_prompt_is_the_caption_with_the_words_swapped(host: Running, prompt: str) -> None:
    job = {**TXT2IMG, "cfg_scale": 1.0, "prompt": prompt}
    plain = drawn(host, job, edit=None)
    asked = drawn(host, {**job, "prompt": prompt.replace("red", "blue")}, edit=None)
    made = drawn(host, job, guidance="off", **SWAP)
    assert spread(made, asked) < 1e-3 * away(plain, asked)
    assert spread(drawn(host, job, guidance="off", strength=0, **SWAP), plain) < 2e-4


def test_every_image_has_the_direction_of_its_own_caption(host: Running) -> None:
    """Sources and targets take turns; nothing is kept from another caption."""
    job = {**TXT2IMG, "cfg_scale": 1.0}
    fields = {**SWAP, "source": "red | circle", "target": "blue | star", "guidance": "off"}
    pair = host.latents(script_args=edit(**fields), batch_size=2, **job)
    for index, prompt in enumerate(("a blue circle", "a red star")):
        alone = {**job, "prompt": prompt, "seed": 1 + index}
        assert spread(pair[index], drawn(host, alone, edit=None)[0]) < 1e-3
    other = drawn(host, {**job, "prompt": "a red star"}, guidance="off", **SWAP)
    assert spread(other, drawn(host, {**job, "prompt": "a blue star"}, edit=None)) < 1e-3


@pytest.mark.parametrize("by_word", [False, True])
def test_where_each_images_own_word_attends(host: Running, by_word: bool) -> None:
    fields = {"source": "red | circle", "target": "blue | star", "mask_mode": "by word" if by_word else "everywhere"}
    made = host.generate(script_args=edit(show=True, **fields), batch_size=2, **IMG2IMG)
    assert CONTROLS.error_key not in made.infotexts[0]
    assert all(sheet.size == (4 * 100 - 8, 64 + 22) for sheet in made.images[-2:])
    refused = host.generate(script_args=edit(**{**fields, "source": "red | horse"}), batch_size=2, **IMG2IMG)
    assert ('"horse" is not in the caption' in refused.comments) == by_word


@pytest.mark.parametrize("job", [TXT2IMG, IMG2IMG], ids=["txt2img", "img2img"])
def test_a_prompt_without_the_word_is_said_and_the_job_is_as_without_it(host: Running, job: dict[str, Any]) -> None:
    made = host.generate(script_args=edit(**{**SWAP, "source": "horse"}), **job)
    assert '"horse" is not in the caption "a red circle"' in made.comments
    assert same(made, host.generate(**job))
    assert list(jobs.fields_of(made, "pix2pix-zero")) == [CONTROLS.error_key]
