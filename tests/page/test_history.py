"""The tab History: what was generated, in any session, can be found, used, liked, thrown away and brought back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import PngImagePlugin

from tests.fabric.small_model import picture
from tests.page.conftest import Browser

pytestmark = pytest.mark.browser

TILES = "return Array.from(document.querySelectorAll('#history .history-tile img'), (i) => i.alt)"
FOCUSED = "return document.activeElement.closest?.('.history-tile')?.querySelector('img')?.alt"
STATUS = "return document.querySelector('.history-status').textContent === arguments[0]"
SETTINGS = "Steps: 3, Sampler: Euler, Schedule type: Automatic, CFG scale: 2.5"
OPEN = "#history [data-place='{}'] .history-open"


@pytest.fixture
def outputs(page_data: Path) -> Iterator[Path]:
    """Three images of earlier sessions, older than whatever else there is, and an empty trash."""
    folder = page_data / "outputs"
    made = []
    for number, (place, text) in enumerate(
        [
            ("txt2img-images", f"zebra at noon\nNegative prompt: rain\n{SETTINGS}, Seed: 11, Size: 64x64"),
            ("txt2img-images", f"zebra by night\n{SETTINGS}, Seed: 12, Size: 64x64"),
            ("img2img-images", f"zebra on ice\n{SETTINGS}, Seed: 13, Size: 64x128, Denoising strength: 0.35"),
        ]
    ):
        path = folder / place / f"zebra-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        picture(60 + number, 64, 64 + 64 * (number == 2)).save(path, pnginfo=info)  # the same ones in every test
        os.utime(path, (1_600_000_000 - number,) * 2)
        made.append(path)
    yield folder
    shutil.rmtree(folder / ".trash", ignore_errors=True)
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def zebras(browser: Browser, outputs: Path) -> None:
    """The history of a fresh page, with a search that has found the three."""
    browser.open()
    browser.js("openTab('tab_history')")
    browser.type(".history-search", "zebra")
    browser.until("return historyList.query === 'zebra' && historyList.fresh.has(0)")
    browser.until(STATUS, "3 images")
    browser.until("return document.querySelectorAll('#history .history-tile img').length === 3")


def key(browser: Browser, *keys: str) -> None:
    browser.driver.switch_to.active_element.send_keys(*keys)


def focus(browser: Browser, place: int) -> None:
    browser.js("document.querySelector(arguments[0]).focus()", OPEN.format(place))


def value(browser: Browser, selector: str) -> Any:
    return browser.js("return document.querySelector(arguments[0])?.value", selector)


def test_a_search_narrows_what_is_shown(browser: Browser, zebras: None, screenshot) -> None:
    assert browser.js(TILES) == ["zebra at noon", "zebra by night", "zebra on ice"]
    browser.type(".history-search", '"seed: 12,"')
    browser.until(STATUS, "1 image")
    assert browser.js(TILES) == ["zebra by night"]
    browser.type(".history-search", "zebra unicorn")
    browser.until(STATUS, "0 images")
    assert "No image has “zebra unicorn”" in browser.text(".history-nothing")
    browser.type(".history-search", "zebra")
    browser.until(STATUS, "3 images")
    browser.until("return Array.from(document.querySelectorAll('#history img')).every((i) => i.naturalWidth > 0)")
    screenshot("history")
    assert browser.errors() == []


def test_a_new_image_is_there_without_a_reload(browser: Browser, zebras: None) -> None:
    browser.js("openTab('tab_txt2img')")
    browser.type("#txt2img_prompt textarea", "zebra just now")
    browser.generate()
    browser.js("openTab('tab_history')")
    browser.until(STATUS, "4 images")
    browser.until(f"return (() => {{ {TILES} }})()[0] === 'zebra just now'")
    done = browser.js("document.getElementById('txt2img_generate').click(); return window.finishedJobs")
    browser.until("return window.finishedJobs > arguments[0]", done)  # while the history is open
    browser.until(STATUS, "5 images")
    focus(browser, 0)
    for left in (4, 3):
        key(browser, "\ue017")
        browser.until(STATUS, f"{left} images")


def test_use_settings_fills_the_tab_that_made_the_image(browser: Browser, zebras: None) -> None:
    browser.click(OPEN.format(0))
    browser.until("return document.querySelector('.history-panel-text').textContent.includes('Seed: 11')")
    browser.click(".history-panel .lightbox-tool")
    browser.until("return uiOpenTab === 'tab_txt2img' && !lightboxIsOpen()")
    browser.until("return document.querySelector('#txt2img_seed input').value === '11'")
    assert value(browser, "#txt2img_prompt textarea") == "zebra at noon"
    assert value(browser, "#txt2img_neg_prompt textarea") == "rain"
    assert value(browser, "#txt2img_steps input[type=number]") == "3"

    browser.js("openTab('tab_history')")
    browser.click(OPEN.format(2))
    browser.click(".history-panel .lightbox-tool")
    browser.until("return uiOpenTab === 'tab_img2img'")
    browser.until("return document.querySelector('#img2img_seed input').value === '13'")
    assert value(browser, "#img2img_denoising_strength input[type=number]") == "0.35"
    assert value(browser, "#txt2img_seed input") == "11"
    assert browser.errors() == []


def test_send_to_img2img_takes_image_and_settings(browser: Browser, zebras: None) -> None:
    browser.click(OPEN.format(2))
    browser.click(".history-panel .lightbox-tool:nth-child(2)")
    size = "const i = document.querySelector('#img2img_image img'); return i && [i.naturalWidth, i.naturalHeight]"
    browser.until(f"return uiOpenTab === 'tab_img2img' && String((() => {{ {size} }})()) === '64,128'")
    browser.until("return document.querySelector('#img2img_prompt textarea').value === 'zebra on ice'")
    assert value(browser, "#img2img_height input[type=number]") == "128"
    assert browser.errors() == []


def test_a_like_from_the_history_is_on_fabrics_list_and_shown_after_a_reload(browser: Browser, zebras: None) -> None:
    liked = "return document.querySelector('#fabric_txt2img_likes :is(textarea, input)').value.length"
    pressed = (
        "return document.querySelector('#history [data-place=\"{}\"] [data-fabric-kind=likes]')"
        "?.getAttribute('aria-pressed') === '{}'"
    )
    focus(browser, 1)
    key(browser, "l")
    browser.until(pressed.format(1, "true"))
    browser.until(f"{liked} === 64")
    browser.until(f"{liked.replace('txt2img', 'img2img')} === 64")  # both tabs share their lists
    assert browser.js(pressed.format(0, "false"))
    browser.open(fresh=False)
    browser.js("openTab('tab_history')")
    browser.type(".history-search", "zebra")
    browser.until(pressed.format(1, "true"))
    browser.click(OPEN.format(1))
    shown = "return document.querySelector('.steer-fabric-viewer [data-fabric-kind=likes]')"
    browser.until(f"return (() => {{ {shown} }})()?.getAttribute('aria-pressed') === 'true'")
    browser.find("#lightboxModal").send_keys("l")  # takes it back
    browser.until(pressed.format(1, "false"))
    browser.until(f"{liked} === 0")
    browser.js("closeLightbox()")
    assert browser.errors() == []


def test_a_deleted_image_comes_back(browser: Browser, zebras: None, outputs: Path) -> None:
    night = outputs / "txt2img-images" / "zebra-1.png"
    focus(browser, 0)
    key(browser, "\ue014")  # right
    assert browser.js(FOCUSED) == "zebra by night"
    key(browser, "\ue017")  # Delete
    browser.until(STATUS, "2 images")
    assert browser.js(FOCUSED) == "zebra on ice"  # the next one has the focus
    assert not night.exists()
    browser.click(".history-undo")
    browser.until(STATUS, "3 images")
    assert night.exists()

    focus(browser, 1)
    key(browser, "\ue017")
    browser.until(STATUS, "2 images")
    key(browser, "\ue009", "z")
    browser.until(STATUS, "3 images")

    browser.click(OPEN.format(1))
    viewer = browser.find("#lightboxModal")
    viewer.send_keys("\ue017")
    browser.until("return document.querySelector('.history-panel-text').textContent.includes('zebra on ice')")
    browser.until("return document.querySelector('.lightbox-count').textContent === '2 / 2'")
    viewer.send_keys("\ue00c")  # Escape
    browser.click("#history_trash")
    browser.until("return document.querySelectorAll('#history .history-tile img').length === 1")
    assert browser.js(TILES) == ["zebra by night"]
    browser.js("document.querySelector('.history-tile-tools button').click()")  # Restore
    browser.until("return document.querySelector('.history-nothing').textContent === 'The trash is empty.'")
    browser.click("#history_trash")
    browser.until(STATUS, "3 images")
    assert night.exists()
    assert browser.errors() == []


def test_emptying_the_trash_asks_first(browser: Browser, zebras: None, outputs: Path) -> None:
    extra = outputs / "txt2img-images" / "zebra-extra.png"
    shutil.copy(outputs / "txt2img-images" / "zebra-0.png", extra)
    browser.js("lookAtHistory()")
    browser.until(STATUS, "4 images")
    focus(browser, 0)
    key(browser, "\ue017")
    browser.until(STATUS, "3 images")
    browser.click("#history_trash")
    browser.until("return document.querySelectorAll('#history .history-tile img').length >= 1")
    browser.click(".history-empty-trash")
    assert browser.text(".history-empty-trash").endswith("for good?")
    assert list((outputs / ".trash").rglob("zebra-extra.png"))
    browser.click(".history-empty-trash")
    browser.until("return document.querySelector('.history-nothing').textContent !== '' && !historyList.inTrash")
    assert not list((outputs / ".trash").rglob("*.png"))
    assert browser.errors() == []


def test_of_ten_thousand_images_only_those_in_view_are_on_the_page(browser: Browser, outputs: Path) -> None:
    first = outputs / "txt2img-images" / "zebra-0.png"
    many = outputs / "many"
    many.mkdir()
    try:
        for number in range(10_000):
            (many / f"{number:05}.png").hardlink_to(first)
        browser.open()
        browser.js("openTab('tab_history')")
        browser.type(".history-search", "many/")
        browser.until(STATUS, "10,000 images")
        count = "return document.querySelectorAll('#history *').length"
        assert browser.js(count) < 1500
        for share in (0.3, 0.9, 0.5):
            browser.js("scrollTo(0, arguments[0] * document.documentElement.scrollHeight)", share)
            browser.until("return document.querySelectorAll('#history .history-tile img').length > 20")
            assert browser.js(count) < 1500
        browser.js("document.querySelector('#history .history-open').focus()")
        key(browser, "\ue010")  # End
        browser.until("return document.activeElement.closest('[data-place]')?.dataset.place === '9999'")
        assert browser.errors() == []
    finally:
        shutil.rmtree(many)


def test_a_broken_file_says_so_and_one_deleted_by_hand_disappears(
    browser: Browser, zebras: None, outputs: Path
) -> None:
    broken = outputs / "txt2img-images" / "zebra-broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    browser.js("lookAtHistory()")
    browser.until(
        "return document.querySelector('.history-broken')?.textContent === 'zebra-broken.png cannot be read.'"
    )
    broken.unlink()
    focus(browser, 0)
    key(browser, "\ue017")
    browser.until(STATUS, "3 images")
    assert all("422" in line or "404" in line for line in browser.errors())  # the browser's own words
