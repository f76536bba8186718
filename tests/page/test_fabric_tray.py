"""FABRIC's tray below the gallery: feedback images, Strength, Compare; and lists that both tabs share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.page.conftest import Browser
from tests.page.test_browser import downloaded
from tests.page.test_fabric_round import give, ids, status
from tests.shared.pictures import as_file, noisy

pytestmark = pytest.mark.browser

TRAY = "[data-fabric-tray=txt2img]"
SWITCH = "return document.querySelector('#fabric_{}-checkbox input').checked"


@pytest.fixture(autouse=True)
def liked(browser: Browser) -> None:
    """The page with one like and one dislike, and nothing generated."""
    browser.open()
    give(browser, "likes", "drop", as_file(noisy(1)))
    ids(browser, "likes", 1)
    give(browser, "dislikes", "drop", as_file(noisy(2)))
    ids(browser, "dislikes", 1)
    thumbs(browser, 2)


def thumbs(browser: Browser, count: int) -> None:
    browser.until(f"return document.querySelectorAll('{TRAY} .steer-fabric-thumb').length === arguments[0]", count)


def generation(browser: Browser) -> dict[str, Any]:
    text = browser.js("return document.querySelector('#generation_info_txt2img :is(textarea, input)').value")
    return dict(json.loads(text))


def test_compare_generates_without_and_with_feedback_once(browser: Browser, screenshot):
    browser.js("inputAccordionChecked('fabric_txt2img', false)")
    done = browser.js("return window.finishedJobs")
    browser.click(f"{TRAY} .steer-fabric-compare")
    browser.until("return window.finishedJobs > arguments[0]", done)
    browser.finished()
    browser.until("return document.querySelectorAll('#txt2img_gallery .thumbnail-item img').length >= 3")
    info = generation(browser)
    first = info["index_of_first_image"]
    assert len(set(info["all_seeds"])) == 1
    assert ["FABRIC likes" in text for text in info["infotexts"][first:]] == [False, True]
    without, with_ = (np.asarray(downloaded(url).convert("RGB")) for url in browser.images()[first:])
    assert not np.array_equal(without, with_)
    assert browser.js(SWITCH.format("txt2img"))
    screenshot("compared")
    # Compare is spent: the next job is an ordinary one
    browser.until("return !document.querySelector('#fabric_txt2img_compare input').checked")
    browser.generate()
    assert ["FABRIC likes" in text for text in generation(browser)["infotexts"]] == [True]


def test_the_slider_is_the_box_s_own(browser: Browser):
    from selenium.webdriver.common.keys import Keys

    assert browser.js(f"return document.querySelector('{TRAY} input').value") == "0.8"
    browser.find(f"{TRAY} input").send_keys(Keys.ARROW_RIGHT)
    status(browser, "1 like, 1 dislike, steps 1-3 of 4, strength 0.85 shared")
    browser.until(f"return document.querySelector('{TRAY} output').value === '0.85'")
    browser.set_number("fabric_txt2img_strength", 0.4)
    browser.until(f"return document.querySelector('{TRAY} input').value === '0.4'")


def test_a_thumb_removes_its_image_and_an_empty_tray_is_gone(browser: Browser):
    browser.click(f"{TRAY} .steer-fabric-thumb[data-fabric-list=dislikes]")
    ids(browser, "dislikes", 0)
    thumbs(browser, 1)
    browser.js(f"document.querySelector('{TRAY} .steer-fabric-thumb').click()")
    ids(browser, "likes", 0)
    browser.until(f"return document.querySelector('{TRAY}').hidden")


def test_both_tabs_have_the_same_lists_and_a_switch_each(browser: Browser):
    field = "document.querySelector(`#fabric_{}_${{kind}} :is(textarea, input)`).value"
    listed = "return ['likes', 'dislikes'].map((kind) => {}).join()"
    text, image = (listed.format(field.format(tab)) for tab in ("txt2img", "img2img"))
    browser.until(f"return (() => {{ {text} }})() === (() => {{ {image} }})()")
    assert [browser.js(SWITCH.format(tab)) for tab in ("txt2img", "img2img")] == [True, False]
    browser.js("openTab('tab_img2img')")
    browser.js("document.querySelector('[data-fabric-tray=img2img] .steer-fabric-thumb').click()")
    ids(browser, "likes", 0)
    browser.open(fresh=False)
    ids(browser, "dislikes", 1)
    browser.until(f"return (() => {{ {text} }})() === (() => {{ {image} }})()")


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []
