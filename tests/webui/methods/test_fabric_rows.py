"""FABRIC finds the rows of the host's batches, however the host lays them out."""

from __future__ import annotations

import pytest

from tests.webui.client import JSON
from tests.webui.jobs import BASE, Runs, feedback, generate, largest_difference, with_fabric
from tests.webui.methods.test_fabric import liked
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]
ROUNDING = 3  # of 255: batches of another size sum in another order

LONG = ", ".join(["a large red circle and a small blue square"] * 12)  # more than one chunk of 75 tokens
LAYOUTS: dict[str, JSON] = {
    "AND": {**BASE, "prompt": "a circle AND a square :0.7 AND a star"},
    "AND, batch of two": {**BASE, "prompt": "a circle AND a square", "batch_size": 2},
    "long prompt": {**BASE, "prompt": LONG},
    "long negative prompt": {**BASE, "negative_prompt": LONG},
    "prompt editing": {**BASE, "prompt": "a [circle:square:0.5]", "batch_size": 2},
}
LAYOUT = pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS.keys())


def separately(payload: JSON) -> JSON:
    """`payload` with cond and uncond rows in calls of their own."""
    return {**payload, "override_settings": {**payload.get("override_settings", {}), "batch_cond_uncond": False}}


@LAYOUT
def test_feedback_acts_and_repeats(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    on = runs.first(with_pack, liked(case))
    assert all(one != other for one, other in zip(on.pixels, runs.first(with_pack, case).pixels))
    assert generate(with_pack, liked(case)).pixels == on.pixels


@LAYOUT
def test_one_call_or_several_give_the_same_image(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    together, apart = runs.first(with_pack, liked(case)), runs.first(with_pack, separately(liked(case)))
    assert max(map(largest_difference, together.images, apart.images)) <= ROUNDING


@pytest.mark.parametrize("case", [BASE, LAYOUTS["AND"]], ids=["one prompt", "AND"])
def test_an_image_does_not_depend_on_its_batch(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    batch = runs.first(with_pack, liked({**case, "batch_size": 2}))
    for index, image in enumerate(batch.images):
        alone = runs.first(with_pack, liked({**case, "seed": case["seed"] + index}))
        assert largest_difference(image, alone.images[0]) <= ROUNDING


def skipping(payload: JSON) -> JSON:
    """`payload` with the uncond rows left out at every step."""
    return {**payload, "override_settings": {"skip_early_cond": 1.0}}


def test_dislikes_have_no_row_when_uncond_is_skipped(with_pack: WebUI, runs: Runs) -> None:
    """Dislikes belong to the uncond rows; where the host leaves them out, dislikes must not fall on others."""
    case = skipping(BASE)
    off = runs.first(with_pack, case).images[0]
    disliked = runs.first(with_pack, with_fabric(case, dislikes=feedback("blue"))).images[0]
    assert largest_difference(off, disliked) <= ROUNDING


def test_likes_act_when_uncond_is_skipped(with_pack: WebUI, runs: Runs) -> None:
    case = skipping({**BASE, "batch_size": 2})
    on = runs.first(with_pack, with_fabric(case, likes=feedback("red")))
    both = runs.first(with_pack, with_fabric(case, likes=feedback("red"), dislikes=feedback("blue")))
    assert on.pixels != runs.first(with_pack, case).pixels
    assert max(map(largest_difference, on.images, both.images)) <= ROUNDING


@pytest.mark.parametrize("every_step", [False, True])
def test_negative_guidance_minimum_sigma(with_pack: WebUI, runs: Runs, every_step: bool) -> None:
    """The host leaves the uncond rows out at every second step, or at all, below a sigma."""
    case = {**BASE, "steps": 4, "s_min_uncond": 1000.0, "override_settings": {"s_min_uncond_all": every_step}}
    on = runs.first(with_pack, liked(case))
    assert "NGMS" in on.infotexts[0]
    assert on.pixels != runs.first(with_pack, case).pixels
    assert generate(with_pack, liked(case)).pixels == on.pixels
