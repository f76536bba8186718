"""A round of feedback in the browser: generate, like, generate again with the same seed, and see another picture."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import Browser
from .test_browser import downloaded

pytestmark = pytest.mark.browser

CLICKABLE = """
const marks = Array.from(document.querySelectorAll(`#tab_txt2img .fabric-mark[data-fabric-kind="${arguments[0]}"]`));
return marks.find((mark) => {
    const box = mark.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return box.width > 0 && top && mark.contains(top);
}) || null;
"""


@pytest.fixture(scope="module", autouse=True)
def opened(browser: Browser) -> None:
    browser.open()


def test_a_liked_picture_changes_the_next_one(browser: Browser, screenshot):
    browser.type("#txt2img_prompt textarea", "a red circle")
    browser.type("#txt2img_seed input", "7")
    first = downloaded(browser.generate()[0])
    assert "FABRIC" not in first.info["parameters"]
    browser.js("window.scrollTo(0, 0)")
    browser.until(CLICKABLE, "likes").click()
    browser.until("return document.querySelector('#tab_txt2img .fabric-mark[aria-pressed=\"true\"]') !== null")
    liked = downloaded(browser.generate()[0])
    assert "FABRIC likes: " in liked.info["parameters"]
    assert "Seed: 7," in liked.info["parameters"]
    assert not np.array_equal(np.asarray(first.convert("RGB")), np.asarray(liked.convert("RGB")))
    screenshot("fabric")


def test_the_same_round_again_gives_the_same_picture(browser: Browser):
    before = browser.images()[0]
    browser.click("#txt2img_generate")
    browser.until("return 'txt2img' in runningTasks")
    browser.finished()
    after = browser.images()[0]
    assert np.array_equal(np.asarray(downloaded(before)), np.asarray(downloaded(after)))


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []
    assert browser.outside_requests() == []
