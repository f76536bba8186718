"""The controls in a browser: an image is put in, shown, and used; what is needed is said where the user looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.small_model import picture
from tests.page.conftest import Browser
from tests.page.test_browser import downloaded

pytestmark = pytest.mark.browser
BOX = "#image_cfg_txt2img"
SWITCH = f"{BOX}-checkbox input"


CHOSEN = "return document.querySelector('#setting_sd_model_checkpoint input').value"


@pytest.fixture(scope="module", autouse=True)
def opened(browser: Browser) -> Iterator[None]:
    """The page with a checkpoint that sees an image; the first one is chosen again afterwards."""
    browser.open()
    first = browser.js(CHOSEN)
    choose(browser, "shapes-instruct.safetensors")
    browser.set_number("txt2img_steps", 3)
    yield
    choose(browser, first)


def choose(browser: Browser, title: str) -> None:
    browser.js("selectCheckpoint(arguments[0])", title)
    browser.until(f"return (() => {{ {CHOSEN} }})().startsWith(arguments[0])", title.split(" ")[0])
    browser.until("return document.querySelector('#txt2img_width input').value === '64'")


def infotext(page: Browser) -> str:
    images = page.generate()
    assert images, page.text("#html_log_txt2img")
    return str(downloaded(images[0]).info["parameters"])


def test_a_picture_is_put_in_shown_and_used(browser: Browser, tmp_path: Path, screenshot) -> None:
    picture(5, 80, 48).save(tmp_path / "picture.png")
    browser.type("#txt2img_prompt textarea", "make it red")
    browser.type("#txt2img_seed input", "7")
    browser.click(f"{BOX} > .label-wrap")
    browser.until(f"return document.querySelector('{BOX}_image_upload input[type=file]') !== null")
    browser.find(f"{BOX}_image_upload input[type=file]").send_keys(str(tmp_path / "picture.png"))
    browser.until(f"return document.querySelector('{BOX}_image_preview img') !== null")
    browser.until(f"return document.querySelector('{SWITCH}').checked")
    browser.until(f"return document.querySelector('{BOX}_status').textContent.includes('1 image, fitted by crop')")
    screenshot("image_cfg")
    first = infotext(browser)
    assert "InstructPix2Pix image: " in first
    assert "InstructPix2Pix image scale" not in first  # the default

    browser.click(f"{BOX}_image_clear")
    browser.until(f"return document.querySelector('{BOX}_image_preview img') === null")
    browser.until(f"return document.querySelector('{BOX}_status').textContent.includes('No image yet')")
    browser.js(
        "const box = document.querySelector('#txt2img_prompt textarea'); box.value = arguments[0]; updateInput(box)",
        first,
    )
    browser.click("#paste")
    browser.until(f"return document.querySelector('{BOX}_image_preview img') !== null")
    assert "InstructPix2Pix image: " in infotext(browser)


def test_a_mask_is_put_in_shown_and_used(browser: Browser, tmp_path: Path, screenshot) -> None:
    half = picture(5, 64, 64).convert("L").point(lambda value: 0)
    half.paste(255, (32, 0, 64, 64))
    half.save(tmp_path / "mask.png")
    browser.click(f"{BOX}_region > .label-wrap")
    browser.until(f"return document.querySelector('{BOX}_mask_upload input[type=file]') !== null")
    browser.find(f"{BOX}_mask_upload input[type=file]").send_keys(str(tmp_path / "mask.png"))
    browser.until(f"return document.querySelector('{BOX}_mask_preview img') !== null")
    browser.until(f"return document.querySelector('{BOX}_status').textContent.includes('1 where the mask is white')")
    screenshot("image_cfg_mask")
    made = infotext(browser)
    assert "InstructPix2Pix mask: " in made
    assert "InstructPix2Pix error" not in made
    browser.click(f"{BOX}_mask_clear")
    browser.until(f"return document.querySelector('{BOX}_mask_preview img') === null")
    browser.until(f"return !document.querySelector('{BOX}_status').textContent.includes('mask')")
    assert "InstructPix2Pix mask: " not in infotext(browser)


def test_a_checkpoint_that_suits_is_offered_and_chosen_with_one_click(browser: Browser) -> None:
    def switch(method: str, sentence: str) -> str:
        line = f"#{method}_txt2img_status"
        browser.until(f"return document.querySelector('{line}').textContent.includes(arguments[0])", sentence)
        name = browser.text(f"{line} .steer-switch").removeprefix("Switch to ")
        browser.click(f"{line} .steer-switch")
        browser.until(f"return (() => {{ {CHOSEN} }})().startsWith(arguments[0])", name)
        browser.until(f"return document.querySelector('{line} .steer-switch') === null")
        return name

    browser.js("inputAccordionChecked('image_cfg_txt2img', false)")
    browser.js("inputAccordionChecked('pix2pix_zero_txt2img', true)")
    assert switch("pix2pix_zero", "This is an InstructPix2Pix checkpoint") != "shapes-instruct"
    browser.js("inputAccordionChecked('pix2pix_zero_txt2img', false)")
    browser.js("inputAccordionChecked('image_cfg_txt2img', true)")
    assert switch("image_cfg", "This is not an InstructPix2Pix checkpoint") == "shapes-instruct"
    assert "steer-problem" not in browser.js(f"return document.querySelector('{BOX}_status').innerHTML")


def test_nothing_went_wrong_in_the_browser(browser: Browser) -> None:
    assert browser.errors() == []
    assert browser.outside_requests() == []
