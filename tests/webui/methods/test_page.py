"""FABRIC in the real WebUI's page, in a real browser: generate, like what came out, generate again, see the effect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.webui.browser import PAGE_TIMEOUT, fill, open_accordion, open_page, page_errors
from tests.webui.server import REPO, WebUI

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "javascript" / "fabric.js").is_file(), reason="javascript/fabric.js is not there"),
]
GALLERY = "#txt2img_gallery img"
INFO = "#html_info_txt2img"
LIST = "#fabric_txt2img_{} :is(textarea, input)"
VIEWER = "#lightboxModal"


@pytest.fixture
def page(window: WebDriver, with_pack: WebUI) -> Iterator[WebDriver]:
    """The page, fresh, set to a small job with a fixed seed."""
    open_page(window, with_pack.client.url)
    fill(window, "#txt2img_prompt textarea", "a red circle")
    for control, value in (("steps", 2), ("width", 128), ("height", 128), ("seed", 4)):
        fill(window, f"#txt2img_{control} input[type=number]", value)
    yield window
    window.execute_script("sessionStorage.clear(); localStorage.clear()")  # of the lists that the page keeps


def generate(page: WebDriver) -> str:
    """Presses Generate and waits for the new image; returns the text under it."""
    before = source(page)
    page.execute_script("document.querySelector(arguments[0]).click()", "#txt2img_generate")
    wait(page, lambda: source(page) not in ("", before))
    wait(page, lambda: "Seed" in text_of(page, INFO) and "processing" not in text_of(page, INFO))
    return text_of(page, INFO)


def source(page: WebDriver) -> str:
    """Address of the gallery's first image, empty where there is none; a new file each time."""
    return str(page.execute_script("return document.querySelector(arguments[0])?.src ?? ''", GALLERY))


def wait(page: WebDriver, condition: object, seconds: float = PAGE_TIMEOUT) -> None:
    """Waits until `condition()` is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, seconds).until(lambda _: condition())  # type: ignore[operator]


def text_of(page: WebDriver, selector: str) -> str:
    """The text of an element, also of a hidden one; empty when it is not there."""
    return str(page.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))


def value_of(page: WebDriver, selector: str) -> str:
    """What an input holds."""
    return str(page.execute_script("return document.querySelector(arguments[0]).value", selector))


def press(page: WebDriver, kind: str, within: str) -> None:
    """Presses 👍 ("likes") or 👎 ("dislikes") on the image in an element."""
    mark = f"{within} .steer-fabric-mark[data-fabric-kind='{kind}']"
    wait(page, lambda: page.execute_script("return !!document.querySelector(arguments[0])?.offsetParent", mark))
    page.execute_script("document.querySelector(arguments[0]).click()", mark)


def pressed(page: WebDriver, within: str) -> list[str]:
    """The lists that the image in an element is on, as its marks show it."""
    marks = f"{within} .steer-fabric-mark[aria-pressed='true']"
    return list(
        page.execute_script("return [...document.querySelectorAll(arguments[0])].map(m => m.dataset.fabricKind)", marks)
    )


def pixels(page: WebDriver) -> str:
    """The gallery's first image, as a data URL drawn again: without the infotext inside the file."""
    return str(
        page.execute_async_script(
            "const done = arguments[1], image = new Image(); image.src = document.querySelector(arguments[0]).src;"
            "image.decode().then(() => { const c = document.createElement('canvas'); c.width = image.naturalWidth;"
            "c.height = image.naturalHeight; c.getContext('2d').drawImage(image, 0, 0); done(c.toDataURL()); });",
            GALLERY,
        )
    )


def test_like_generate_again_and_see_the_effect(page: WebDriver, with_pack: WebUI) -> None:
    before = len(with_pack.log())
    assert "FABRIC" not in generate(page)
    plain = pixels(page)
    press(page, "likes", "#txt2img_gallery")
    likes = LIST.format("likes")
    wait(page, lambda: re.fullmatch("[0-9a-f]{64}", value_of(page, likes)))
    wait(page, lambda: "1 like" in text_of(page, "#fabric_txt2img_status"))
    text = generate(page)
    assert f"FABRIC likes: {value_of(page, likes)[:16]}" in text
    assert pixels(page) != plain
    assert with_pack.errors(before) == []


def test_compare_below_the_gallery_generates_without_and_with_the_likes(page: WebDriver, with_pack: WebUI) -> None:
    before = len(with_pack.log())
    generate(page)
    press(page, "likes", "#txt2img_gallery")
    wait(page, lambda: value_of(page, LIST.format("likes")))
    tray = "[data-fabric-tray=txt2img]"
    wait(page, lambda: page.execute_script(f"return !!document.querySelector('{tray} .steer-fabric-thumb')"))
    shown = source(page)
    page.execute_script(f"document.querySelector('{tray} .steer-fabric-compare').click()")
    wait(page, lambda: source(page) not in ("", shown))
    info = "#generation_info_txt2img :is(textarea, input)"
    wait(page, lambda: len(json.loads(value_of(page, info))["infotexts"]) > 1)
    made = json.loads(value_of(page, info))
    assert len(set(made["all_seeds"])) == 1
    texts = made["infotexts"][made["index_of_first_image"] :]
    assert ["FABRIC likes" in text for text in texts] == [False, True]
    spent = "return !document.querySelector('#fabric_txt2img_compare input').checked"
    wait(page, lambda: page.execute_script(spent))
    assert "FABRIC likes" in generate(page)
    assert with_pack.errors(before) == []


def test_a_sampler_that_a_method_cannot_work_with_is_named_before_the_job(page: WebDriver) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_accordion(page, "pix2pix-zero")  # which turns it on
    for name, word in (("source", "cat"), ("target", "dog")):
        fill(page, f"#pix2pix_zero_txt2img_{name} :is(textarea, input)", word)
    box = page.find_element(By.CSS_SELECTOR, "#txt2img_sampling input")
    for sampler, sentence in (("LCM", "needs new noise at every step"), ("Euler", "cat to dog")):
        box.click()
        box.send_keys(Keys.CONTROL, "a", Keys.NULL, sampler, Keys.ENTER)
        wait(page, lambda sentence=sentence: sentence in text_of(page, "#pix2pix_zero_txt2img_status"))


def test_both_lists_outlive_a_reload_and_a_picture_that_is_gone_is_told(page: WebDriver, with_pack: WebUI) -> None:
    generate(page)
    press(page, "likes", "#txt2img_gallery")
    wait(page, lambda: value_of(page, LIST.format("likes")))
    first = value_of(page, LIST.format("likes"))
    fill(page, "#txt2img_seed input[type=number]", 5)
    generate(page)
    press(page, "dislikes", "#txt2img_gallery")
    wait(page, lambda: value_of(page, LIST.format("dislikes")))
    second = value_of(page, LIST.format("dislikes"))
    open_page(page, with_pack.client.url)
    wait(
        page, lambda: (value_of(page, LIST.format("likes")), value_of(page, LIST.format("dislikes"))) == (first, second)
    )
    wait(page, lambda: "Switched off (1 like, 1 dislike" in text_of(page, "#fabric_txt2img_status"))
    wait(page, lambda: value_of(page, "#fabric_img2img_likes :is(textarea, input)") == first)  # shared
    next(with_pack.data.rglob(f"{second}.png")).unlink()
    open_page(page, with_pack.client.url)
    wait(page, lambda: value_of(page, LIST.format("likes")) == first)
    wait(page, lambda: f"disliked image {second[:8]}… is not on this machine" in text_of(page, ".steer-toast"))
    assert value_of(page, LIST.format("dislikes")) == ""


def test_the_full_screen_viewer_has_marks_of_the_shown_picture(page: WebDriver, with_pack: WebUI) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    before = len(with_pack.log())
    fill(page, "#txt2img_batch_size input[type=number]", 2)
    generate(page)
    page_errors(page)
    page.execute_script("document.querySelector('#txt2img_gallery .thumbnail-item.thumbnail-lg')?.click()")
    boxes = ":is(.gradio-gallery > div, .gradio-gallery > button > button)"  # of gradio 3 and of gradio 4
    shown = f"document.querySelector('{boxes} > img[data-modded]')"  # once the host listens to clicks
    wait(page, lambda: page.execute_script(f"return !!{shown}"))
    page.execute_script(f"{shown}.click()")
    viewer = page.find_element(By.CSS_SELECTOR, VIEWER)
    wait(page, viewer.is_displayed)
    viewer.send_keys("l")  # the grid comes first, and is nobody's like
    viewer.send_keys(Keys.ARROW_RIGHT)
    press(page, "likes", VIEWER)
    wait(page, lambda: pressed(page, VIEWER) == ["likes"])
    first = value_of(page, LIST.format("likes"))
    assert re.fullmatch("[0-9a-f]{64}", first)
    viewer.send_keys(Keys.ARROW_RIGHT)
    wait(page, lambda: pressed(page, VIEWER) == [])  # another image
    viewer.send_keys("d")
    wait(page, lambda: pressed(page, VIEWER) == ["dislikes"])
    viewer.send_keys("l")
    wait(page, lambda: pressed(page, VIEWER) == ["likes"])
    assert len(value_of(page, LIST.format("likes")).split()) == 2
    assert value_of(page, LIST.format("dislikes")) == ""
    viewer.send_keys("l")
    wait(page, lambda: value_of(page, LIST.format("likes")) == first)
    assert viewer.is_displayed()
    viewer.send_keys(Keys.ESCAPE)
    wait(page, lambda: not viewer.is_displayed())
    wait(page, lambda: pressed(page, "#txt2img_gallery"))
    assert page_errors(page) == []
    assert with_pack.errors(before) == []


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_accordion_opens_without_a_script_error(page: WebDriver, tab: str) -> None:
    page_errors(page)  # those of the WebUI itself, which has some when a size changes
    accordion = open_accordion(page, "FABRIC", tab)
    assert "Likes" in accordion.text
    assert "Dislikes" in accordion.text
    assert page_errors(page) == []


def test_a_high_cfg_scale_offers_guidance_above_its_closed_box(page: WebDriver) -> None:
    offer, status = "#guidance_txt2img_offer", "#guidance_txt2img_status"
    fill(page, "#txt2img_cfg_scale input[type=number]", 15)
    wait(page, lambda: "burn at CFG 15: turn on Guidance" in text_of(page, offer))
    page_errors(page)  # those of the WebUI itself
    page.execute_script("document.querySelector(arguments[0]).click()", offer)
    wait(page, lambda: text_of(page, status).strip().startswith("At CFG 15, values that would burn come out as at CFG"))
    wait(page, lambda: page.execute_script("return !document.querySelector(arguments[0])?.offsetParent", offer))
    assert page_errors(page) == []
