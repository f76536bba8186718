"""The library of directions in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_methods.pix2pix_zero.library import DirectionLibrary
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
