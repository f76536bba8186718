"""The Cascade tab in a real browser, with the real process and tiny random stages: generate, tick, upscale, reload."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cascade import models
from tests.page.conftest import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TICKS = "#cascade_sheet .steer-cascade-tick"


def said(browser: Browser, where: str, text: str) -> None:
    """Waits until a part of the tab says so."""
    browser.until(
        "return document.querySelector(arguments[0]).textContent.includes(arguments[1])",
        f"#cascade_{where}",
        text,
    )


def shown(browser: Browser, count: int) -> None:
    browser.until("return document.querySelectorAll(arguments[0]).length === arguments[1]", TICKS, count)


def test_generate_tick_upscale_reload(browser: Browser, page_data: Path, screenshot: Callable[[str], None]) -> None:
    models.cascade(page_data / "models" / "cascade")
    browser.open()
    browser.js("openTab('tab_cascade')")
    if "IF-II" not in browser.text("#cascade_stages"):  # the page was made before they were there
        browser.js("document.querySelectorAll('#cascade_stages .token-remove').forEach((button) => button.click())")
    browser.click("#cascade_refresh")
    browser.until("return document.querySelector('#cascade_stages').textContent.includes('IF-II')")
    browser.type("#cascade_prompt textarea", "a red cat")
    browser.set_number("cascade_count", 3)
    browser.click("#cascade_generate")
    said(browser, "panel", 'Generating "a-red-cat": stage 1, step')
    screenshot("cascade-running")

    browser.open()  # a new page finds the running job again
    browser.js("openTab('tab_cascade')")
    said(browser, "panel", '"a-red-cat" is done')
    shown(browser, 3)
    for number in (0, 2):
        browser.js("document.querySelectorAll(arguments[0])[arguments[1]].click()", TICKS, number)
    browser.set_number("cascade_last_stage", 2)
    browser.click("#cascade_upscale")
    said(browser, "panel", '"a-red-cat-up" is done')
    shown(browser, 5)
    screenshot("cascade-upscaled")

    browser.open()  # and what came of it
    browser.js("openTab('tab_cascade')")
    shown(browser, 5)
    browser.js("document.querySelectorAll(arguments[0])[0].click()", TICKS)
    browser.click("#cascade_to_img2img")
    browser.until("return document.querySelector('#img2img_image img') !== null")
    assert browser.js("return document.querySelector('#img2img_prompt textarea').value") == "a red cat"
    browser.js("openTab('tab_cascade')")
    browser.click("#cascade_to_extras")
    browser.until("return uiOpenTab === 'tab_extras' && document.querySelector('#extras_image img') !== null")
    browser.js("openTab('tab_cascade')")
    browser.click("#cascade_to_likes")
    browser.until("return document.querySelectorAll('[data-fabric-tab=txt2img] .steer-fabric-card').length === 1")
    assert browser.errors() == []


def test_a_result_of_dreambooth_opens_in_the_tab(browser: Browser, page_data: Path) -> None:
    models.first_stage(page_data / "models" / "cascade" / "rex-cascade" / "stage-1")
    browser.open()
    base = "rex-cascade (pixel cascade)"
    browser.js("openTab('tab_dreambooth')")
    browser.click("#dreambooth_refresh")  # the page was made before it was there
    browser.click("#dreambooth_base input")
    browser.until("return document.body.textContent.includes(arguments[0])", base)
    browser.js("cascadePage.take(arguments[0])", json.dumps({"prompt": "a ohwx dog", "cascade": "rex-cascade"}))
    said(browser, "line", "rex-cascade is chosen")
    said(browser, "stages", "rex-cascade")
    assert browser.js("return document.querySelector('#cascade_prompt textarea').value") == "a ohwx dog"
    assert browser.js("return document.querySelector('#cascade_prompt').offsetParent !== null"), "the tab is open"
    assert browser.errors() == []
