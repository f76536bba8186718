"""Styles on the page: saved in the dialog, chosen, found in an infotext, put into the prompt, deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page.conftest import Browser
from tests.page.test_accessibility import AXE, CHECK
from tests.page.test_extras import TOLD

pytestmark = pytest.mark.browser

PROMPTS = (
    "return ['prompt', 'neg_prompt']"
    ".map((name) => document.querySelector(`#txt2img_${name} textarea`).value).join(' | ')"
)
CHOSEN = "return [...document.querySelectorAll('#txt2img_styles .token > span')].map((part) => part.textContent.trim())"


def test_a_style_from_the_dialog_to_the_job_and_back(browser: Browser, page_data: Path, screenshot) -> None:
    browser.open()
    browser.type("#txt2img_prompt textarea", "on a grey background")
    browser.click("#txt2img_styles_edit")
    browser.click("#style_copy")
    browser.until("return document.querySelector('#style_prompt textarea').value === 'on a grey background'")
    browser.type("#style_name input", "grey")
    browser.type("#style_neg_prompt textarea", "white")
    browser.js(AXE)
    browser.driver.set_script_timeout(60)
    assert browser.driver.execute_async_script(CHECK) == []
    screenshot("styles")
    browser.click("#style_save")
    browser.until(TOLD, "Saved the style grey.")
    assert b"grey,on a grey background,white" in (page_data / "styles.csv").read_bytes()

    from selenium.webdriver.common.keys import Keys

    browser.find("#style_name input").send_keys(Keys.ESCAPE)
    assert not browser.find("#styles_dialog").is_displayed()
    browser.type("#txt2img_prompt textarea", "a red circle")
    browser.click("#txt2img_styles input")
    browser.click("#txt2img_styles [role=option]")
    browser.until("return document.querySelector('#txt2img_token_counter').textContent.includes('8/75')")
    browser.generate()
    told = browser.text("#html_info_txt2img")
    assert told.startswith("a red circle, on a grey background")
    assert "Negative prompt: white" in told

    browser.click("#txt2img_style_apply")
    browser.until(f"{PROMPTS} === arguments[0]", "a red circle, on a grey background | white")
    assert browser.js(CHOSEN) == []
    browser.click("#txt2img_clear_prompt")
    browser.until(f"{PROMPTS} === ' | '")
    browser.click("#paste")
    browser.until("return document.querySelector('#txt2img_prompt textarea').value === 'a red circle'")
    assert browser.js(CHOSEN) == ["grey"]
    browser.open(fresh=False)
    browser.until("return document.querySelector('#txt2img_prompt textarea').value === 'a red circle'")
    browser.until(CHOSEN + ".length")

    browser.click("#txt2img_styles_edit")
    browser.type("#style_name input", "grey")
    browser.click("#style_delete")
    browser.driver.switch_to.alert.accept()
    browser.until(CHOSEN + ".length === 0")
    assert b"grey" not in (page_data / "styles.csv").read_bytes()
    browser.click("#styles_dialog .dialog-close")
    assert browser.errors() == []
