"""A round of feedback in the browser: generate, like, see the effect, take it back; the lists, and the viewer."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.page.conftest import Browser
from tests.page.test_browser import downloaded
from tests.shared.pictures import as_file, noisy

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


def mark(browser: Browser, kind: str) -> Any:
    """The large thumb on the image that is shown."""
    return browser.until(CLICKABLE, kind)


def pressed(browser: Browser, kind: str, wanted: bool) -> None:
    browser.until(f"return (() => {{ {CLICKABLE} }})()?.getAttribute('aria-pressed') === '{str(wanted).lower()}'", kind)


def ids(browser: Browser, name: str, count: int) -> list[str]:
    """The ids in a list, once it has `count` of them."""
    value = f"document.querySelector('#fabric_txt2img_{name} :is(textarea, input)').value.split(' ').filter(Boolean)"
    browser.until(f"return {value}.length === {count}")
    return list(browser.js(f"return {value}"))


def header(browser: Browser, text: str) -> None:
    """Waits until the closed box's header says this."""
    browser.until(
        "return document.querySelector('#fabric_txt2img > .label-wrap > span').dataset.steerFabric === arguments[0]",
        text,
    )


def status(browser: Browser, start: str) -> None:
    """Waits until the line below the lists starts so."""
    browser.until(
        "return document.querySelector('#fabric_txt2img_status .steer-status')?.textContent.trim()"
        ".startsWith(arguments[0])",
        start,
    )


def test_a_liked_picture_changes_the_next_one_until_it_is_taken_back(browser: Browser, screenshot):
    browser.type("#txt2img_prompt textarea", "a red circle")
    browser.type("#txt2img_seed input", "7")
    header(browser, "👍 more like this, 👎 less like that")
    first = downloaded(browser.generate()[0])
    assert "FABRIC" not in first.info["parameters"]
    browser.js("window.scrollTo(0, 0)")
    mark(browser, "likes").click()
    pressed(browser, "likes", True)
    (like,) = ids(browser, "likes", 1)
    status(browser, "1 like, steps 1-")
    liked = downloaded(browser.generate()[0])
    assert f"FABRIC likes: {like[:16]}" in liked.info["parameters"]
    assert "Seed: 7," in liked.info["parameters"]
    assert not np.array_equal(np.asarray(first.convert("RGB")), np.asarray(liked.convert("RGB")))
    screenshot("fabric")

    done = browser.js("return window.finishedJobs")
    browser.click("#txt2img_generate")
    browser.until("return window.finishedJobs > arguments[0]", done)
    browser.finished()
    assert np.array_equal(np.asarray(downloaded(browser.images()[0])), np.asarray(liked))

    pressed(browser, "likes", False)  # the new picture is not the liked one
    mark(browser, "dislikes").click()
    status(browser, "1 like, 1 dislike")
    header(browser, "1 👍, 1 👎")
    browser.js("inputAccordionChecked('fabric_txt2img', false)")
    header(browser, "1 👍, 1 👎, off")
    browser.js("inputAccordionChecked('fabric_txt2img', true)")
    mark(browser, "dislikes").click()
    ids(browser, "dislikes", 0)
    browser.js(f"document.querySelector('[data-fabric-id=\"{like}\"] .steer-fabric-remove').click()")
    ids(browser, "likes", 0)
    status(browser, "No feedback yet")
    again = downloaded(browser.generate()[0])
    assert "FABRIC" not in again.info["parameters"]
    assert np.array_equal(np.asarray(again), np.asarray(first))


def test_a_grid_has_no_thumbs(browser: Browser):
    browser.set_number("txt2img_batch_size", 2)
    browser.generate()
    thumbs = "document.querySelectorAll('#txt2img_gallery .thumbnails img')"
    browser.until(f"return {thumbs}.length === 3")
    sources = browser.js(f"return Array.from({thumbs}).map((image) => image.src)")
    several = "return fabricPage.showsSeveral(fabricPage.tabs.txt2img, arguments[0])"
    assert [browser.js(several, source) for source in sources] == [True, False, False]
    shown = (
        "const page = document.querySelector('#txt2img_gallery');"
        "const image = page.querySelector('img:not(.steer-fabric-layer img)');"
        "const large = page.querySelectorAll('.steer-fabric-marks:not(.steer-fabric-tiny)').length;"
        "return image.src === arguments[0] && (large > 0) === arguments[1]"
    )
    for index in (0, 1, 0):
        browser.js(f"{thumbs}[arguments[0]].click()", index)
        browser.until(shown, sources[index], index > 0)


def give(browser: Browser, kind: str, event: str, data: bytes) -> None:
    """Drops or pastes a picture onto a list."""
    browser.js(
        "const [kind, name, text] = arguments;"
        "const panel = document.querySelector(`[data-fabric-tab=txt2img] .steer-fabric-${kind}`); panel.focus();"
        "const file = new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], 'a.png', {type: 'image/png'});"
        "const held = new DataTransfer(); held.items.add(file);"
        "panel.dispatchEvent(name === 'drop'"
        " ? new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: held})"
        " : new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: held}));",
        kind,
        event,
        base64.b64encode(data).decode("ascii"),
    )


def test_pictures_are_dropped_pasted_and_weighted_and_are_nobody_elses(browser: Browser):
    from selenium.webdriver.common.keys import Keys

    for seed in range(2):
        give(browser, "likes", "drop", as_file(noisy(seed)))
        ids(browser, "likes", seed + 1)
    give(browser, "dislikes", "paste", as_file(noisy(0)))  # moves from the likes: the last wish counts
    ids(browser, "dislikes", 1)
    ids(browser, "likes", 1)
    browser.until("return document.querySelectorAll('[data-fabric-tab=txt2img] .steer-fabric-card').length === 2")
    weight = ".steer-fabric-likes .steer-fabric-weight input"
    browser.type(weight, "0.5")
    browser.find(weight).send_keys(Keys.TAB)
    browser.until("return document.querySelector('#fabric_txt2img_likes :is(textarea, input)').value.endsWith(':0.5')")
    give(browser, "likes", "drop", b"not a picture")
    browser.told("cannot be read")
    ids(browser, "likes", 1)

    window = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    try:
        browser.open()
        browser.open()  # now as in another browser: nothing is kept
        ids(browser, "likes", 0)
        ids(browser, "dislikes", 0)
    finally:
        browser.driver.close()
        browser.driver.switch_to.window(window)


VIEWER = "return document.getElementById('lightboxModal') !== null"
SHOWN = "return document.getElementById('modalImage').src"
PRESSED = (
    "return document.querySelector('.steer-fabric-viewer .steer-fabric-mark[aria-pressed=\"true\"]')"
    "?.dataset.fabricKind ?? ''"
)


def test_the_viewer_fills_the_screen_and_has_arrows_likes_and_zoom(browser: Browser, screenshot):
    from selenium.webdriver.common.keys import Keys

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
    browser.set_number("txt2img_steps", 60)
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
        browser.js(
            "document.querySelector('#txt2img_gallery .steer-fabric-mark').click()"
        )  # the lists are rendered again
        browser.until(f"return (() => {{ {cards} }})() === 1")
        browser.find(".steer-fabric-picker").send_keys("\n".join(map(str, files)))
    finally:
        browser.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})
    browser.told("3 of 8 images could not be read: a.png, b.png, c.png.")
    browser.until(f"return (() => {{ {cards} }})() === 6")


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []
    assert browser.outside_requests() == []
