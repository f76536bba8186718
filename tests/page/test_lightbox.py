"""The full-screen viewer compares an image with the one it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fabric.small_model import picture
from tests.page.conftest import Browser

pytestmark = pytest.mark.browser

COMPARES = "return document.getElementById('lightboxModal').classList.contains('compares')"
OFFERED = "return document.getElementById('lightboxModal').classList.contains('can-compare')"
PARTS = ["#lightboxBefore", ".lightbox-divider"]
BOXES = "return arguments[0].map((part) => document.querySelector(part).getBoundingClientRect())"


def test_before_and_after_img2img(browser: Browser, tmp_path: Path, screenshot) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    picture(5, 96, 48).save(tmp_path / "start.png")  # not the result's shape: it is cropped as the job saw it
    browser.open()
    browser.js("openTab('tab_img2img')")
    browser.until("return document.querySelector('#img2img_image input[type=file]') !== null")
    browser.find("#img2img_image input[type=file]").send_keys(str(tmp_path / "start.png"))
    browser.until("return document.querySelector('#img2img_image img') !== null")
    browser.click("#resize_mode label:nth-of-type(2)")
    browser.set_number("img2img_batch_size", 2)
    browser.generate("img2img")
    browser.js("openLightbox('img2img')")
    browser.until(OFFERED)
    viewer = browser.find("#lightboxModal")
    assert not browser.js(COMPARES)
    viewer.send_keys("c")
    assert browser.js(COMPARES)
    size = "const i = document.getElementById('lightboxBefore'); return [i.naturalWidth, i.naturalHeight]"
    assert browser.js(size) == [64, 64]
    screenshot("before_after")

    divider = browser.find(".lightbox-divider")
    ActionChains(browser.driver).drag_and_drop_by_offset(divider, 200, 0).perform()
    before, line = browser.js(BOXES, PARTS)
    assert line["x"] + line["width"] / 2 == pytest.approx(683 + 200, abs=2)
    clip = browser.js("return document.getElementById('lightboxBefore').style.clipPath")
    assert float(clip.split()[1].removesuffix("px")) == pytest.approx(683 - 200, abs=2)
    divider.send_keys(Keys.ARROW_LEFT)
    assert browser.js("return document.querySelector('.lightbox-divider').getAttribute('aria-valuenow')") == "63"

    viewer.send_keys("z")
    zoomed, image = browser.js(
        "return ['lightboxBefore', 'modalImage'].map((id) => document.getElementById(id).getBoundingClientRect().width)"
    )
    assert zoomed == image > before["width"]
    viewer.send_keys(Keys.ARROW_RIGHT)  # the other image of the batch has the same start
    browser.until(COMPARES)
    viewer.send_keys("c")
    assert not browser.js(COMPARES)
    viewer.send_keys(Keys.ESCAPE)
    assert browser.errors() == []


def test_what_was_made_from_a_prompt_has_nothing_to_compare_with(browser: Browser) -> None:
    browser.open()
    browser.generate()
    browser.js("openLightbox('txt2img')")
    browser.until("return document.getElementById('modalImage').complete")
    assert not browser.js(OFFERED)
    browser.find("#lightboxModal").send_keys("c")
    assert not browser.js(COMPARES)
    browser.js("closeLightbox()")
    assert browser.errors() == []
