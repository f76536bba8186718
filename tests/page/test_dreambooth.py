"""The DreamBooth tab in a real browser, with the real trainer: from photos to an image generated with the LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dreambooth.models import put
from tests.page.conftest import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def opened(browser: Browser) -> None:
    browser.open()
    browser.js("openTab('tab_dreambooth')")


def set_text(browser: Browser, name: str, value: object) -> None:
    """As typing does, also while the accordion is closed."""
    browser.js(
        "const box = document.querySelector(arguments[0]); box.value = arguments[1];"
        "for (const name of ['input', 'change', 'blur']) box.dispatchEvent(new Event(name, {bubbles: true}));",
        f"#dreambooth_{name} textarea, #dreambooth_{name} input",
        str(value),
    )


def test_the_page_says_what_is_missing(browser: Browser) -> None:
    assert "Drop 3 to 5 photos" in browser.text("#dreambooth_line")
    assert browser.js("return document.querySelectorAll('#dreambooth_train').length") == 1
    browser.click("#dreambooth_train")
    browser.until("return document.querySelector('#dreambooth_line [role=alert]') !== null")
    assert "Drop 3 to 5 photos" in browser.text("#dreambooth_line")


def fill(browser: Browser, folder: Path, noun: str, **more: object) -> None:
    """Drops four photos, names the class, and sets controls behind "More"."""
    photos = [put(folder, f"{number}.png", 96, 96, number) for number in range(4)]
    browser.find("#dreambooth_photos input[type=file]").send_keys("\n".join(map(str, photos)))
    browser.until("return document.querySelectorAll('#dreambooth_photos_shown img').length === 4")
    browser.type("#dreambooth_class_noun textarea, #dreambooth_class_noun input", noun)
    said(browser, "line", f"4 photos of a {noun} become a LoRA")
    assert cells(browser)["Steps"] == "1,000", "there is a plan before the training"
    browser.click("#dreambooth_more button")
    browser.until("return document.querySelector('#dreambooth_steps input') !== null")
    for name, value in more.items():
        set_text(browser, name, value)
    said(browser, "line", f"{more['steps']} steps")


def cells(browser: Browser) -> dict[str, str]:
    """The plan below "Train"."""
    found = browser.js(
        "return Array.from(document.querySelectorAll('#dreambooth_line .steer-dreambooth-plan > div'))"
        ".map((cell) => [cell.querySelector('dt').textContent, cell.querySelector('dd').textContent])"
    )
    return {str(name): str(text) for name, text in found}


def said(browser: Browser, where: str, text: str) -> None:
    """Waits until a part of the tab says so."""
    browser.until(
        "return document.querySelector(arguments[0]).textContent.includes(arguments[1])",
        f"#dreambooth_{where}",
        text,
    )


def test_the_plan_stands_there_before_the_training_and_follows_the_controls(
    browser: Browser, tmp_path: Path, screenshot: Callable[[str], None]
) -> None:
    assert cells(browser) == {}
    fill(browser, tmp_path, "mug", steps=200, resolution=64)
    browser.until("return document.querySelector('#dreambooth_line .steer-dreambooth-plan dd').textContent === '200'")
    lora = cells(browser)
    assert list(lora) == ["Steps", "Time, estimated", "Memory", "Result", "On"]
    screenshot("dreambooth-plan")
    browser.js("document.querySelectorAll('#dreambooth_kind input')[1].click()")
    said(browser, "line", "become a whole checkpoint")
    full = cells(browser)
    assert full["Result"] != lora["Result"] and full["Steps"] == "200"
    assert browser.js("return document.querySelector('#dreambooth_line details').open") is False
    set_text(browser, "memory", 0.01)
    said(browser, "line", "are not enough")
    assert cells(browser) == {} and browser.js(
        "return document.querySelector('#dreambooth_line [role=alert]') !== null"
    )
    assert "Nothing has been trained yet" in browser.text("#dreambooth_panel")


def test_from_photos_to_a_picture(browser: Browser, tmp_path: Path, screenshot: Callable[[str], None]) -> None:
    browser.open()
    browser.js("openTab('tab_dreambooth')")
    fill(browser, tmp_path, "dog", steps=40, resolution=64, sample_every=20, name="rex")
    screenshot("dreambooth-more")
    browser.click("#dreambooth_train")
    said(browser, "panel", 'Training "rex"')
    browser.until("return document.querySelector('#dreambooth_panel .steer-dreambooth-plan') !== null")
    screenshot("dreambooth-running")

    browser.open()  # a new page finds the training run again
    browser.js("openTab('tab_dreambooth')")
    said(browser, "panel", '"rex" is done')
    browser.until("return document.querySelectorAll('#dreambooth_samples img').length > 0")
    assert "rex.safetensors" in browser.text("#dreambooth_panel")
    assert browser.js("return document.querySelector('#dreambooth_panel svg polyline') !== null")
    screenshot("dreambooth-done")

    browser.js("openTab('tab_txt2img')")
    browser.type("#txt2img_prompt textarea", "on grass")
    browser.js("openTab('tab_dreambooth')")
    prompt = "return document.querySelector('#txt2img_prompt textarea').value"
    browser.click("#dreambooth_use")
    browser.until("return get_uiCurrentTabContent().id === 'tab_txt2img'")
    browser.until(f"{prompt}.endsWith('<lora:rex:1>, on grass')")
    screenshot("dreambooth-used")
    browser.click(".steer-undo button")
    assert browser.js(prompt) == "on grass" and not browser.js("return document.querySelector('.steer-undo')")
    browser.js("openTab('tab_dreambooth')")
    browser.click("#dreambooth_use")
    browser.until(f"{prompt}.includes('<lora:rex:1>')")
    browser.generate()
    assert "Lora hashes" in browser.text("#html_info_txt2img")
    assert "LoRA error" not in browser.text("#html_info_txt2img")


def test_cancel_and_resume(browser: Browser, tmp_path: Path, screenshot: Callable[[str], None]) -> None:
    browser.open()
    browser.js("openTab('tab_dreambooth')")
    fill(browser, tmp_path, "cat", steps=100000, resolution=64, sample_every=100000)
    running = "return /step [1-9]\\d* of 100000/.test(document.querySelector('#dreambooth_panel').textContent)"
    for button in ("train", "resume"):
        browser.click(f"#dreambooth_{button}")
        said(browser, "panel", 'Training "my-cat"')
        browser.until(running)
        browser.click("#dreambooth_cancel")
        said(browser, "panel", "was cancelled after step")
        screenshot(f"dreambooth-cancelled-{button}")
    assert browser.js("return document.querySelector('#dreambooth_use')?.offsetParent") is None


def test_a_checkpoint_is_chosen_by_its_title(browser: Browser) -> None:
    """What "Use it now" does with a whole checkpoint, as in the WebUI: `selectCheckpoint`."""
    chosen = "return document.querySelector('#setting_sd_model_checkpoint input').value"
    before = browser.js(chosen)
    for title in ("shapes.safetensors", before):
        browser.js("selectCheckpoint(arguments[0])", title)
        browser.until(f"return (() => {{ {chosen} }})().startsWith(arguments[0])", title.split(" ")[0])


def test_the_page_had_no_errors(browser: Browser) -> None:
    assert browser.outside_requests() == []
    assert browser.errors() == []
