"""Keys in a prompt: weights with Ctrl and the arrows, parts moved with Alt and the arrows."""

from __future__ import annotations

import pytest

from tests.page.conftest import Browser

pytestmark = pytest.mark.browser

PROMPT = "#txt2img_prompt textarea"


@pytest.fixture(scope="module", autouse=True)
def opened(browser: Browser) -> None:
    browser.open()


WEIGHTED = [
    ("a red| circle", 1, "a (red:1.1) circle"),
    ("a [red circle]", -1, "a (red circle:0.9)"),
    ("a (r|ed:1.1) circle", 1, "a (red:1.2) circle"),
    ("a ([red]:1.1) circle", -1, "a red circle"),
    ("a (red:1.1|) circle", -1, "a red circle"),
    ("(a red:0.9) |circle", 1, "(a red:0.9) (circle:1.1)"),
    ("<lora:so|me:1>", -1, "<lora:some:0.95>"),
    ("<lora:some:0.95|>", 1, "<lora:some:1>"),
    (r"a \(red|\)", 1, r"a \((red:1.1)\)"),
    ("a,|,b", 1, "a,,b"),
    ("|", 1, ""),
    ("[ red ]", 1, " (red:1.1) "),
    ("a (red|:-0.1)", 1, "a (red:0)"),
]
MOVED = [
    ("a| red, b, c", 1, "b, a red, c"),
    ("a, b, |c", -1, "a, c, b"),
    ("a, b|", 1, "a, b"),
    ("|a, b", -1, "a, b"),
    ("a,\nb|, c", -1, "b,\na, c"),
    ("(a:1.2)|, $& b", 1, "$& b, (a:1.2)"),
    ("a|", 1, "a"),
]


def select(browser: Browser, marked: str) -> None:
    """Puts a text into the prompt, with the cursor at "|" or what is in square brackets selected."""
    if "|" in marked:
        start = end = marked.index("|")
        text = marked.replace("|", "")
    else:
        start, end = marked.index("["), marked.index("]") - 1
        text = marked.replace("[", "").replace("]", "")
    browser.js(
        "const box = document.querySelector(arguments[0]); box.focus(); box.value = arguments[1]; updateInput(box);"
        "box.setSelectionRange(arguments[2], arguments[3])",
        PROMPT,
        text,
        start,
        end,
    )


def value(browser: Browser) -> str:
    return str(browser.js("return document.querySelector(arguments[0]).value", PROMPT))


@pytest.mark.parametrize(("marked", "direction", "wanted"), WEIGHTED)
def test_ctrl_and_the_arrows_weight_words(browser: Browser, marked: str, direction: int, wanted: str):
    from selenium.webdriver.common.keys import Keys

    select(browser, marked)
    browser.find(PROMPT).send_keys(Keys.CONTROL, Keys.ARROW_UP if direction > 0 else Keys.ARROW_DOWN)
    assert value(browser) == wanted


@pytest.mark.parametrize(("marked", "direction", "wanted"), MOVED)
def test_alt_and_the_arrows_move_a_part(browser: Browser, marked: str, direction: int, wanted: str):
    from selenium.webdriver.common.keys import Keys

    select(browser, marked)
    browser.find(PROMPT).send_keys(Keys.ALT, Keys.ARROW_RIGHT if direction > 0 else Keys.ARROW_LEFT)
    assert value(browser) == wanted


def test_up_and_down_again_is_what_it_was_and_the_job_has_the_weight(browser: Browser):
    from selenium.webdriver.common.keys import Keys

    select(browser, "a [red] circle")
    box = browser.find(PROMPT)
    for key, wanted in [(Keys.ARROW_UP, "(red:1.1)"), (Keys.ARROW_UP, "(red:1.2)"), (Keys.ARROW_DOWN, "(red:1.1)")]:
        box.send_keys(Keys.CONTROL, key)
        assert value(browser) == f"a {wanted} circle"
    box.send_keys(Keys.CONTROL, Keys.ARROW_DOWN)
    assert value(browser) == "a red circle"
    box.send_keys(Keys.CONTROL, "z")
    assert value(browser) == "a (red:1.1) circle"
    browser.generate()
    assert browser.text("#html_info_txt2img").startswith("a (red:1.1) circle")


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []
