"""pix2pix-zero in the real WebUI's page, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.webui.browser import fill, open_accordion, open_page, page_errors
from tests.webui.edits import CAPTION, TITLE
from tests.webui.methods.test_page import INFO, generate, text_of, wait
from tests.webui.server import REPO, WebUI

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "pix2pix_zero.py").is_file(), reason="the script is not there"),
]
TAB = pytest.mark.parametrize("tab", ["txt2img", "img2img"])


@pytest.fixture
def page(window: WebDriver, with_pack: WebUI) -> Iterator[WebDriver]:
    """The page, fresh. Nothing may be logged as an error, in the browser or by the host."""
    before = len(with_pack.log())
    open_page(window, with_pack.client.url)
    page_errors(window)  # those of the WebUI itself
    yield window
    assert page_errors(window) == []
    assert with_pack.errors(before) == []


def field(accordion: WebElement, label: str) -> WebElement:
    """The input of a control with this label."""
    from selenium.webdriver.common.by import By

    found = f".//label[.//span[normalize-space(.)='{label}']]//*[self::textarea or self::input]"
    return accordion.find_element(By.XPATH, found)


def status(page: WebDriver, tab: str) -> str:
    return text_of(page, f"#pix2pix_zero_{tab}_status").strip()


@TAB
def test_the_line_says_what_will_happen(page: WebDriver, tab: str) -> None:
    accordion = open_accordion(page, TITLE, tab)
    wait(page, lambda: "source is empty" in status(page, tab))
    problem = f"#pix2pix_zero_{tab}_status .steer-problem"
    field(accordion, "Source").send_keys("cat")
    wait(page, lambda: "target is empty" in status(page, tab))
    field(accordion, "Target").send_keys("Cat")
    wait(page, lambda: "nothing to change" in status(page, tab))
    assert text_of(page, problem)
    field(accordion, "Target").send_keys("fish | dog")
    whose = "the tab's image" if tab == "img2img" else "the prompt's image"
    wait(page, lambda: f"cat to Catfish | dog in {whose}" in status(page, tab))
    assert not text_of(page, problem)
    for title in ("Where it may change", "More"):
        assert "open" in (open_accordion(page, title, tab).get_attribute("innerHTML") or "")


def test_an_edit_from_the_page(page: WebDriver) -> None:
    """With the page's own sampler; the image and the sheet are in the gallery, the settings below it."""
    fill(page, "#txt2img_prompt textarea", CAPTION)
    for control, value in (("steps", 5), ("width", 64), ("height", 64), ("seed", 4)):
        fill(page, f"#txt2img_{control} input[type=number]", value)
    accordion = open_accordion(page, TITLE)
    page_errors(page)  # those of the WebUI itself when a size changes
    field(accordion, "Source").send_keys("green")
    field(accordion, "Target").send_keys("red")
    wait(page, lambda: "green to red in the prompt's image" in status(page, "txt2img"))
    generate(page)
    assert f"{TITLE} source: green" in text_of(page, INFO)
    assert f"{TITLE} error" not in text_of(page, INFO)
    small = "#txt2img_gallery .thumbnail-small"
    wait(page, lambda: len(page.find_elements("css selector", small)) == 2)
