"""A language chosen in the settings: the pack's controls are translated, what somebody typed is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.page.conftest import Browser

pytestmark = pytest.mark.browser

STRENGTH = "#fabric_txt2img_strength"
SAVE = (
    "const done = arguments[1]; fetch('/sdapi/v1/options', {method: 'POST', headers: {'content-type': "
    "'application/json'}, body: JSON.stringify({localization: arguments[0]})}).then((answer) => done(answer.status))"
)


def choose(page: Browser, language: str) -> None:
    assert page.driver.execute_async_script(SAVE, language) == 200
    page.open(fresh=False)


@pytest.fixture
def japanese(browser: Browser) -> Iterator[Browser]:
    browser.open()
    assert "Strength" in browser.text(STRENGTH)
    browser.type("#txt2img_prompt textarea", "Strength")
    choose(browser, "ja_JP")
    yield browser
    choose(browser, "None")
    assert "Strength" in browser.text(STRENGTH)


def test_the_packs_controls_are_japanese_and_the_prompt_stays(japanese: Browser) -> None:
    japanese.until("return document.querySelector(arguments[0])?.textContent.includes('強度')", STRENGTH)
    empty = "return document.querySelector('#fabric_txt2img_board .steer-fabric-empty').textContent"
    assert japanese.js(empty) == "生成した画像の 👍 を押すか、ここに画像をドロップします。"
    prompt = "return document.querySelector('#txt2img_prompt textarea').value"
    japanese.until(f"{prompt} === 'Strength'")
    assert japanese.errors() == []
