"""pix2pix-zero in a browser: the library of directions, and what is offered after an edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lib_methods.pix2pix_zero.library import DirectionLibrary
from tests.fabric.small_model import picture
from tests.page.conftest import Browser

pytestmark = pytest.mark.browser
BOX = "#pix2pix_zero_txt2img"


def test_a_direction_is_built_used_combined_and_deleted(browser: Browser, page_data: Path) -> None:
    def press(name: str, told: str) -> None:
        browser.js(f"document.querySelector('{BOX}_{name}').click()")
        browser.until(f"return document.querySelector('{BOX}_library_status').textContent.includes(arguments[0])", told)

    def fill(name: str, text: str) -> None:
        browser.type(f"{BOX}_{name} textarea, {BOX}_{name} input", text)

    def kept() -> list[str]:
        (folder,) = page_data.rglob("directions")
        return sorted(listed.name for listed in DirectionLibrary(folder).list())

    browser.open()
    browser.js(f"document.querySelector('{BOX} .label-wrap').click()")
    browser.until(f"return document.querySelector('{BOX}_library .label-wrap')").click()
    browser.until(f"return document.querySelector('{BOX}_build')")
    press("build", "Give the direction a name")
    fill("name", "cat to dog")
    press("build", "Enter what the image shows")
    fill("source", "cat")
    fill("target", "dog")
    press("build", '"cat to dog" is built')
    press("add", "is used instead of the words")
    fill("name", "back")
    press("combine", '"back" is combined')
    assert kept() == ["back", "cat to dog"]
    press("delete", '"back" is deleted')
    assert kept() == ["cat to dog"]


def test_an_edit_is_compared_made_stronger_and_held_more_firmly(
    browser: Browser, tmp_path: Path, screenshot: Callable[[str], None]
) -> None:
    box = "#pix2pix_zero_img2img"
    told = "return document.querySelector('#html_info_img2img').textContent.includes(arguments[0])"
    row = "return document.querySelector('[data-edit-again=img2img]')?.hidden === false"

    def again(place: int, expected: str) -> None:
        done = browser.js("return window.finishedJobs")
        browser.click(f"[data-edit-again=img2img] button:nth-child({place})")
        browser.until("return window.finishedJobs > arguments[0]", done)
        browser.until(told, expected)

    picture(5, 96, 48).save(tmp_path / "start.png")
    browser.open()
    browser.js("openTab('tab_img2img')")
    browser.until("return document.querySelector('#img2img_image input[type=file]') !== null")
    browser.find("#img2img_image input[type=file]").send_keys(str(tmp_path / "start.png"))
    browser.until("return document.querySelector('#img2img_image img') !== null")
    browser.type("#img2img_prompt textarea", "a red house")
    browser.js("inputAccordionChecked('pix2pix_zero_img2img', true)")
    browser.until(f"return document.querySelector('{box}_source') !== null")
    browser.type(f"{box}_source textarea, {box}_source input", "red")
    browser.type(f"{box}_target textarea, {box}_target input", "blue")
    browser.until(f"return document.querySelector('{box}_status').textContent.includes('taken as adjectives')")
    assert not browser.js(row)
    browser.generate("img2img")
    browser.until(told, "pix2pix-zero words are: adjective")
    browser.until(row)
    screenshot("edit_again")
    browser.js("openLightbox('img2img')")
    browser.until("return document.getElementById('lightboxModal').classList.contains('can-compare')")
    browser.js("closeLightbox()")
    again(1, "pix2pix-zero strength: 1.25")
    again(2, "pix2pix-zero structure: 0.5")
    browser.js("inputAccordionChecked('pix2pix_zero_img2img', false)")
    browser.until("return document.querySelector('[data-edit-again=img2img]').hidden")
    assert browser.errors() == []
