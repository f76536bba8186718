"""A round of feedback in the browser: generate, like, generate again with the same seed, and see another image."""

from __future__ import annotations

import numpy as np
import pytest

from tests.page.conftest import Browser
from tests.page.test_browser import downloaded

pytestmark = pytest.mark.browser

CLICKABLE = """
const mark = `.steer-fabric-mark[data-fabric-kind="${arguments[0]}"]`;
const marks = Array.from(document.querySelectorAll(`#tab_txt2img ${mark}`));
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
    browser.until("return document.querySelector('#tab_txt2img .steer-fabric-mark[aria-pressed=\"true\"]') !== null")
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


VIEWER = "return document.getElementById('lightboxModal') !== null"
SHOWN = "return document.getElementById('modalImage').src"
PRESSED = (
    "return document.querySelector('.steer-fabric-viewer .steer-fabric-mark[aria-pressed=\"true\"]')"
    "?.dataset.fabricKind ?? ''"
)


def test_the_viewer_fills_the_screen_and_has_arrows_likes_and_zoom(browser: Browser, screenshot):
    from selenium.webdriver.common.keys import Keys

    browser.open()
    browser.set_number("txt2img_batch_size", 3)
    images = browser.generate()
    browser.click("#txt2img_gallery .preview .media-button")
    assert browser.js(VIEWER)
    browser.until("return document.getElementById('modalImage').complete")
    box = browser.js(
        "const b = document.getElementById('modalImage').getBoundingClientRect(); return [b.width, b.height]"
    )
    assert box == [1366, 768]
    viewer = browser.find("#lightboxModal")
    viewer.send_keys(Keys.END)
    assert browser.js(SHOWN) == images[-1]
    viewer.send_keys("l")
    browser.until(f"return (() => {{ {PRESSED} }})() === 'likes'")
    viewer.send_keys(Keys.ARROW_LEFT)
    assert browser.js(SHOWN) == images[-2]
    browser.until(f"return (() => {{ {PRESSED} }})() === ''")
    viewer.send_keys("d")
    browser.until(f"return (() => {{ {PRESSED} }})() === 'dislikes'")
    viewer.send_keys("z")
    assert browser.js("return document.getElementById('modalImage').getBoundingClientRect().width") > 2000
    viewer.send_keys(Keys.ARROW_RIGHT)
    assert browser.js(SHOWN) == images[-1]
    assert browser.js("return document.getElementById('modalImage').getBoundingClientRect().width") == 1366
    screenshot("viewer")
    browser.set_number("txt2img_steps", 100)
    browser.js("document.getElementById('txt2img_generate').click()")
    browser.until("return 'txt2img' in runningTasks")
    viewer.send_keys(Keys.ESCAPE)
    assert not browser.js(VIEWER)
    assert not browser.js("return document.querySelector('.steer-fabric-viewer') !== null")
    assert not browser.js("return document.getElementById('txt2img_interrupting').style.display === 'block'")
    browser.js("openLightbox('txt2img')")
    browser.finished()
    browser.until(f"return !arguments[0].includes((() => {{ {SHOWN} }})())", images)  # the new job's
    browser.js("closeLightbox()")


def test_thumbs_are_large_enough_and_nothing_of_other_images_shines_through(browser: Browser):
    browser.set_number("txt2img_steps", 4)
    browser.set_number("txt2img_batch_size", 1)
    browser.generate()
    browser.until("return document.querySelectorAll('#txt2img_gallery .thumbnail-small').length === 1")
    browser.until(
        "return document.querySelectorAll('#txt2img_gallery .steer-fabric-marks').length <= 2"
    )  # large, and small
    assert (
        browser.js("return getComputedStyle(document.querySelector('#txt2img_gallery .preview')).backgroundColor")[:4]
        == "rgb("
    )
    browser.js(
        "document.querySelector('#txt2img_gallery .thumbnail-small')"
        ".dispatchEvent(new Event('pointerover', {bubbles: true}))"
    )
    sizes = (
        "return Array.from(document.querySelectorAll('.steer-fabric-mark, .steer-fabric-remove, .steer-fabric-upload'))"
        ".filter((m) => m.offsetParent).map((m) => Math.min(m.offsetWidth, m.offsetHeight))"
    )
    browser.until(f"return (() => {{ {sizes} }})().length > 4")
    assert min(browser.js(sizes)) >= 26


def test_chosen_files_survive_a_redrawn_list_and_bad_ones_are_named(browser: Browser, tmp_path):
    from PIL import Image

    browser.js("['likes', 'dislikes'].forEach((list) => fabricPage.send(fabricPage.tabs.txt2img, {do: 'clear', list}))")
    files = []
    for number in range(5):
        files.append(tmp_path / f"good{number}.png")
        Image.new("RGB", (64, 64), (40 * number, 90, 9)).save(files[-1])
    for name in "abc":
        files.append(tmp_path / f"{name}.png")
        files[-1].write_bytes(b"no image")
    likes = "[data-fabric-tab=txt2img] [data-fabric-list=likes]"
    cards = f"return document.querySelectorAll('{likes} .steer-fabric-card img').length"
    browser.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    try:
        browser.until("return document.querySelector('[data-fabric-tab=txt2img] .steer-fabric-card') === null")
        browser.click("[data-fabric-tab=txt2img] [data-fabric-list=likes] .steer-fabric-upload")
        browser.js("document.querySelector('#txt2img_gallery .steer-fabric-mark').click()")  # the lists are drawn again
        browser.until(f"return (() => {{ {cards} }})() === 1")
        browser.find(".steer-fabric-picker").send_keys("\n".join(map(str, files)))
    finally:
        browser.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})
    browser.until(
        "return document.querySelector('.steer-toast')?.textContent"
        " === '3 of 8 images could not be read: a.png, b.png, c.png.'"
    )
    browser.until(f"return (() => {{ {cards} }})() === 6")


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []
    assert browser.outside_requests() == []
