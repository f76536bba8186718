"""FABRIC in the real WebUI: what a job with likes and dislikes gives, over the REST API."""

from __future__ import annotations

import numpy as np
import pytest

from tests.webui.client import JSON
from tests.webui.jobs import BASE, CASES, Runs, feedback, generate, with_fabric
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def liked(case: JSON) -> JSON:
    """`case` with two likes of unequal weight and size, and a dislike."""
    likes = feedback("red") + feedback("orange", weight=0.5, size=(200, 96), shape="rectangle")
    return with_fabric(case, likes=likes, dislikes=feedback("blue"))


@CASE
def test_without_feedback_the_image_is_that_of_no_pack(
    with_pack: WebUI, without_pack: WebUI, runs: Runs, case: JSON
) -> None:
    plain = runs.first(without_pack, case).pixels
    assert runs.first(with_pack, case).pixels == plain, "the pack changes the image though FABRIC is not asked for"


@CASE
def test_feedback_changes_every_image(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    off, on = runs.first(with_pack, case), runs.first(with_pack, liked(case))
    assert [image.size for image in on.images] == [image.size for image in off.images]
    assert all(one != other for one, other in zip(off.pixels, on.pixels))


@CASE
def test_a_repeat_is_identical(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    """Another job in between; the second run finds the reference features in the cache, the first may not."""
    first = runs.first(with_pack, liked(case))
    generate(with_pack, with_fabric({**BASE, "seed": 5, "steps": 1}, likes=feedback("purple")))
    assert generate(with_pack, liked(case)).pixels == first.pixels


@CASE
def test_off_stays_off_after_jobs_with_feedback(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    off = runs.first(with_pack, case)
    runs.first(with_pack, liked(case))
    assert generate(with_pack, case).pixels == off.pixels


@CASE
def test_the_infotext_names_the_feedback(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    for text in runs.first(with_pack, liked(case)).infotexts:
        assert "FABRIC likes: " in text
        assert "FABRIC strength" not in text  # the default
        assert "FABRIC error" not in text
    assert not any("FABRIC" in text for text in runs.first(with_pack, case).infotexts)


def test_likes_and_dislikes_act_differently(with_pack: WebUI, runs: Runs) -> None:
    images = {
        runs.first(with_pack, payload).pixels
        for payload in (
            BASE,
            with_fabric(BASE, likes=feedback("red")),
            with_fabric(BASE, dislikes=feedback("red")),
            with_fabric(BASE, likes=feedback("red"), dislikes=feedback("red")),
        )
    }
    assert len(images) == 4


def test_weights_count_image_by_image(with_pack: WebUI, runs: Runs) -> None:
    red, blue = feedback("red"), feedback("blue")
    heavy_red = feedback("red", weight=3.0) + feedback("blue", weight=0.5)
    heavy_blue = feedback("red", weight=0.5) + feedback("blue", weight=3.0)
    images = {
        runs.first(with_pack, with_fabric(BASE, likes=likes)).pixels for likes in (red + blue, heavy_red, heavy_blue)
    }
    assert len(images) == 3


def test_the_same_picture_twice_counts_once(with_pack: WebUI, runs: Runs) -> None:
    once = runs.first(with_pack, with_fabric(BASE, likes=feedback("red")))
    twice = runs.first(with_pack, with_fabric(BASE, likes=feedback("red", "red")))
    assert twice.pixels == once.pixels


@pytest.mark.parametrize(
    "settings", [{"likes": []}, {"likes": feedback("red"), "strength": 0.0}], ids=["no image", "strength 0"]
)
def test_settings_that_ask_for_nothing_change_nothing(with_pack: WebUI, runs: Runs, settings: JSON) -> None:
    asked = runs.first(with_pack, with_fabric(BASE, **settings))
    assert asked.pixels == runs.first(with_pack, BASE).pixels


def test_steps_outside_of_the_range_are_left_alone(with_pack: WebUI, runs: Runs) -> None:
    """Guidance of the first step only, of the later steps only, and of all are three different images."""
    case = {**BASE, "steps": 4}
    ranges = [{"start": 0.0, "end": 0.25}, {"start": 0.25, "end": 1.0}, {"start": 0.0, "end": 1.0}]
    images = {runs.first(with_pack, with_fabric(case, likes=feedback("red"), **r)).pixels for r in ranges}
    assert len(images | {runs.first(with_pack, case).pixels}) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"reference_levels": "one", "strength": 0.5}, {"reference_levels": "every step"},
        {"layers": "coarse"}, {"layers": "fine"}, {"adain": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_to_read_the_images_acts_and_repeats(with_pack: WebUI, runs: Runs, settings: JSON) -> None:
    case = with_fabric(CASES["Hires.fix"], likes=feedback("red"), **settings)
    made = generate(with_pack, case)
    assert "FABRIC likes" in made.infotexts[0] and "error" not in made.infotexts[0]
    assert made.pixels != runs.first(with_pack, with_fabric(CASES["Hires.fix"], likes=feedback("red"))).pixels
    assert generate(with_pack, case).pixels == made.pixels


def test_a_consistent_batch_follows_its_first_image(with_pack: WebUI, runs: Runs) -> None:
    case = {**BASE, "batch_size": 3}
    off, on = runs.first(with_pack, case), generate(with_pack, with_fabric(case, consistent_batch=True))
    one, other = (np.asarray(made.images[0].convert("RGB")).astype(int) for made in (off, on))
    assert np.abs(one - other).max() <= 2  # attention is computed by another kernel
    assert all(before != after for before, after in zip(off.pixels[1:], on.pixels[1:]))
    assert "FABRIC consistent batch: on" in on.infotexts[0]


@pytest.mark.parametrize("case", [BASE, CASES["Hires.fix"], CASES["img2img"]], ids=["txt2img", "Hires.fix", "img2img"])
def test_compare_gives_the_images_without_and_with(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    wanted = with_fabric(case, likes=feedback("red"))
    off, on = runs.first(with_pack, case), runs.first(with_pack, wanted)
    both = generate(with_pack, with_fabric(case, likes=feedback("red"), compare=True))
    first = len(both.pixels) - len(off.pixels) - len(on.pixels)  # a grid stands before them
    assert both.pixels[first:] == off.pixels + on.pixels
    assert ["FABRIC likes" in text for text in both.infotexts[first:]] == [False, True]


@pytest.mark.parametrize("case", [BASE, CASES["Hires.fix"]], ids=["txt2img", "Hires.fix"])
def test_the_infotext_alone_gives_the_image_again(with_pack: WebUI, runs: Runs, case: JSON) -> None:
    """As pasting it into the page does: every control comes back, the images by their hash."""
    published = {"weighting": "as published", "detail": "half", "colour_correction": False, "hires": "re-encode"}
    for settings in ({}, {**published, "start": 0.2, "negative_weight": 1.5, "seed": 3}):
        wanted = with_fabric(
            case, likes=feedback("red") + feedback("orange", weight=0.5), dislikes=feedback("blue"), **settings
        )
        made = runs.first(with_pack, wanted)
        # the WebUI reads "Use same sampler" out of its own infotext, and then knows no sampler of that name
        named = {"hr_sampler_name": case["sampler_name"]} if "enable_hr" in case else {}
        again = generate(with_pack, {"infotext": made.infotexts[0], **named})
        assert again.infotexts == made.infotexts
        assert again.pixels == made.pixels


def test_the_global_random_generator_is_left_alone(with_pack: WebUI) -> None:
    """The job after one with FABRIC, with the random numbers that follow, is as if it had been without."""
    following = CASES["img2img"]
    with_pack.client.generate(BASE)
    after_plain = with_pack.client.generate(following)
    with_pack.client.generate(with_fabric(BASE, likes=feedback("teal")))
    assert with_pack.client.generate(following).pixels == after_plain.pixels
