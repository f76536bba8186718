"""NAG in the real WebUI, over the REST API."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webui.client import JSON
from tests.webui.jobs import BASE, CASES, Runs, generate, largest_difference
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "nag.py").is_file(), reason="the script is not there"),
]
NAMES = ("txt2img, Euler a", "txt2img, DDIM", "batch of two", "Hires.fix", "img2img", "inpainting", "CFG scale 1")
CASE = pytest.mark.parametrize("case", [CASES[name] for name in NAMES], ids=NAMES)


def on(case: JSON, **settings: Any) -> JSON:
    """`case` with NAG's named fields."""
    return {**case, "alwayson_scripts": {"NAG": {"args": [settings]}}}


@CASE
def test_every_image_changes_repeats_and_off_is_off(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    off, changed = runs.first(with_pack, case), runs.first(with_pack, on(case))
    assert all(one != other for one, other in zip(off.pixels, changed.pixels))
    assert generate(with_pack, on(case)).pixels == changed.pixels
    assert all("NAG scale: 3" in text and "NAG error" not in text for text in changed.infotexts)
    assert generate(with_pack, case).pixels == off.pixels


@pytest.mark.parametrize("negative", ["blurry " * 90, ""], ids=["long", "empty"])
def test_at_cfg_scale_1_the_negative_prompt_counts(with_pack: WebUI, runs: Runs, negative: str) -> None:
    case = {**BASE, "cfg_scale": 1}
    other = {**case, "negative_prompt": negative}
    plain, moved = ([runs.first(with_pack, made) for made in pair] for pair in ((case, other), (on(case), on(other))))
    off, far = (largest_difference(*(made.images[0] for made in pair)) for pair in (plain, moved))
    assert off <= 2 < far  # prompts of unequal length run in separate batches, which round differently


def test_skipped_unconditional_rows_and_and(with_pack: WebUI, runs: Runs) -> None:
    for case in ({**BASE, "s_min_uncond": 4.0}, {**BASE, "prompt": "a circle AND red :0.5"}):
        assert runs.first(with_pack, on(case)).pixels != runs.first(with_pack, case).pixels
