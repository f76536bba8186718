"""The lists of feedback images outlive a reload of the same browser tab, and belong to that tab alone."""

from __future__ import annotations

import json

import pytest

from .conftest import Browser
from .test_fabric_round import CLICKABLE

pytestmark = pytest.mark.browser

UNKNOWN = "a" * 64


def lines(browser: Browser, tab: str = "txt2img") -> list[str]:
    """What the page carries as likes and dislikes."""
    field = "document.querySelector(`#fabric_{}_${{kind}} :is(textarea, input)`)"
    return list(browser.js(f"return ['likes', 'dislikes'].map(kind => {field.format(tab)}.value)"))


def becomes(browser: Browser, likes: str, dislikes: str) -> None:
    wanted = [likes, dislikes]
    browser.until(
        "return ['likes', 'dislikes'].every((kind, i) => arguments[0][i] ==="
        " document.querySelector(`#fabric_txt2img_${kind} :is(textarea, input)`).value)",
        wanted,
    )


@pytest.fixture(scope="module")
def liked(browser: Browser) -> str:
    """The id of a picture that was made and liked."""
    browser.open()
    browser.type("#txt2img_prompt textarea", "a red circle")
    browser.generate()
    browser.js("window.scrollTo(0, 0)")
    browser.until(CLICKABLE, "likes").click()
    browser.until("return document.querySelector('#fabric_txt2img_likes :is(textarea, input)').value !== ''")
    return lines(browser)[0]


def keep(browser: Browser, tab: str, kept: str) -> None:
    """Opens the page with something in the storage of the browser's tab."""
    browser.open()
    browser.js("sessionStorage.setItem(`fabric_lists_${arguments[0]}`, arguments[1])", tab, kept)
    browser.open(fresh=False)


def test_a_like_is_still_there_after_a_reload(browser: Browser, liked: str):
    for _ in range(2):
        browser.open(fresh=False)
        becomes(browser, liked, "")
        assert lines(browser, "img2img") == ["", ""]
    assert not browser.js("return document.querySelector('#fabric_txt2img-checkbox input').checked")
    browser.click("#fabric_txt2img > .label-wrap")
    browser.until("return document.querySelectorAll('[data-fabric-tab=txt2img] .fabric-card img').length === 1")
    browser.click("[data-fabric-tab=txt2img] .fabric-clear")
    becomes(browser, "", "")
    browser.open(fresh=False)
    browser.until("return document.querySelector('#img2img_gallery') !== null")
    assert lines(browser) == ["", ""]


def test_only_ids_and_weights_are_kept(browser: Browser, liked: str):
    keep(browser, "txt2img", json.dumps({"likes": f"{liked}:0.5", "dislikes": ""}))
    becomes(browser, f"{liked}:0.5", "")
    kept = browser.js("return Object.entries(sessionStorage).filter(([key]) => key.startsWith('fabric'))")
    assert [(key, json.loads(text)) for key, text in kept] == [
        ("fabric_lists_txt2img", {"likes": f"{liked}:0.5", "dislikes": ""})
    ]
    assert browser.js("return Object.keys(localStorage).filter((key) => key.includes('fabric'))") == []


def test_a_picture_that_is_gone_is_left_out_and_told_once(browser: Browser, liked: str):
    keep(browser, "txt2img", json.dumps({"likes": f"{UNKNOWN} {liked}", "dislikes": ""}))
    becomes(browser, liked, "")
    browser.until(
        "return document.querySelector('.fabric-toast')?.textContent.includes('aaaaaaaa… is not on this machine')"
    )
    browser.open(fresh=False)
    becomes(browser, liked, "")
    assert browser.text(".fabric-toast") == ""


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ("rubbish", ""),
        ("null", ""),
        ("[1, 2]", ""),
        ('{"likes": 7, "dislikes": {"a": 1}}', "cannot be understood"),
        ('{"likes": "../../etc/passwd", "dislikes": ""}', "named by its 64-digit hash"),
        ('{"likes": "", "dislikes": "<img src=x onerror=alert(1)>"}', "named by its 64-digit hash"),
        (json.dumps({"likes": f"{UNKNOWN}:99", "dislikes": ""}), "weight"),
    ],
)
def test_whatever_else_the_storage_holds_does_no_harm(browser: Browser, liked: str, kept: str, sentence: str):
    keep(browser, "img2img", kept)
    if sentence:
        browser.until(
            "return (document.querySelector('.fabric-toast')?.textContent ?? '').includes(arguments[0])", sentence
        )
        browser.open(fresh=False)  # what cannot be read is told once
    browser.js("return new Promise((resolve) => setTimeout(resolve, 500))")
    assert browser.text(".fabric-toast") == ""
    assert lines(browser, "img2img") == lines(browser) == ["", ""]


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []
