"""What outlives a reload: the job in progress, prompt and settings, and the lists of feedback images."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from tests.api.process import Process
from tests.page.conftest import Browser
from tests.page.test_fabric_round import CLICKABLE

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


@pytest.fixture
def liked(browser: Browser) -> str:
    """The id of an image that was made and liked: for each test, and again when it is tried a second time."""
    browser.open()
    browser.type("#txt2img_prompt textarea", "a red circle")
    browser.generate()
    browser.js("window.scrollTo(0, 0)")
    browser.until(CLICKABLE, "likes").click()
    browser.until("return document.querySelector('#fabric_txt2img_likes :is(textarea, input)').value !== ''")
    return lines(browser)[0]


def keep(browser: Browser, **kept: str) -> None:
    """Loads the page with this in the storage of the browser's tab, by tabs of the page."""
    browser.driver.get(f"{browser.address}internal/ping")  # where no script of the page still writes to the storage
    browser.js(
        "sessionStorage.clear(); localStorage.clear();"
        "Object.entries(arguments[0]).forEach(([tab, text]) => sessionStorage.setItem(`fabric_lists_${tab}`, text))",
        kept,
    )
    browser.open(fresh=False)


def test_a_like_is_still_there_after_a_reload(browser: Browser, liked: str):
    for _ in range(2):
        browser.open(fresh=False)
        becomes(browser, liked, "")
    browser.until("return document.querySelector('#fabric_txt2img-checkbox input').checked")
    browser.until("return document.querySelectorAll('[data-fabric-tab=txt2img] .steer-fabric-card img').length === 1")
    browser.click("[data-fabric-tab=txt2img] .steer-fabric-clear")
    becomes(browser, "", "")
    browser.open(fresh=False)
    browser.until("return document.querySelector('#img2img_gallery') !== null")
    assert lines(browser) == ["", ""]


ENABLED = "return document.querySelector('#fabric_txt2img-checkbox input').checked"
FIRST_RESTORE_IS_LOST = """
const ask = window.fetch, now = Date.now;
let ahead = 0;
Date.now = () => now() + ahead;
window.fetch = (...all) => {
    if (ahead || !String(all[1]?.body).includes('restore')) return ask(...all);
    ahead = 61000; // so much later the page no longer waits for the answer
    return new Promise(() => {});
};
"""


def test_a_late_answer_leaves_the_switch_as_it_is_by_then(browser: Browser, liked: str):
    browser.open()
    browser.js(
        "const ask = window.fetch; window.held = [];"
        "window.fetch = (...all) => String(all[1]?.body).includes('restore')"
        " ? new Promise((go) => held.push(go)).then(() => ask(...all)) : ask(...all);"
        "fabricPage.send(fabricPage.tabs.txt2img, {do: 'restore', list: 'likes', images: arguments[0]});",
        liked,
    )
    browser.until("return held.length === 1")
    browser.js("document.querySelector('#fabric_txt2img-checkbox input').click()")
    browser.until(ENABLED)
    browser.js("held[0]()")
    becomes(browser, liked, "")
    browser.until("return document.querySelectorAll('[data-fabric-tab=txt2img] .steer-fabric-card img').length === 1")
    assert browser.js(ENABLED)


def test_lists_without_an_answer_are_asked_for_again(browser: Browser, liked: str):
    script = {"source": FIRST_RESTORE_IS_LOST}
    added = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        browser.open(fresh=False)
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    browser.told("The server did not answer.")
    becomes(browser, liked, "")


def test_only_ids_and_weights_are_kept(browser: Browser, liked: str):
    keep(browser, txt2img=json.dumps({"likes": f"{liked}:0.5", "dislikes": ""}))
    becomes(browser, f"{liked}:0.5", "")
    kept = browser.js("return Object.entries(sessionStorage).filter(([key]) => key.startsWith('fabric'))")
    wanted = {"likes": f"{liked}:0.5", "dislikes": ""}
    assert {key: json.loads(text) for key, text in kept}["fabric_lists_txt2img"] == wanted
    kept = browser.js("return Object.entries(localStorage).filter(([key]) => key.startsWith('fabric'))")
    assert {key: json.loads(text) for key, text in kept}["fabric_lists_txt2img"] == wanted


def test_prompt_lists_and_gallery_are_back_in_a_new_tab(browser: Browser, liked: str):
    browser.open()
    browser.type("#txt2img_prompt textarea", "a green circle")
    browser.generate()
    browser.js("window.scrollTo(0, 0)")
    browser.until(CLICKABLE, "likes").click()
    browser.until("return localStorage.getItem('fabric_lists_txt2img')?.includes('likes')")
    (made, infotext), listed = (browser.images(), browser.text("#html_info_txt2img")), lines(browser)
    browser.driver.get(f"{browser.address}internal/ping")
    browser.js("sessionStorage.clear()")  # as in a new tab
    browser.open(fresh=False)
    becomes(browser, *listed)
    browser.until("return document.querySelector('#txt2img_prompt textarea').value === 'a green circle'")
    browser.until("return document.querySelectorAll('#txt2img_gallery img').length > 0")
    assert (browser.images(), browser.text("#html_info_txt2img")) == (made, infotext)


def test_a_picture_that_is_gone_is_left_out_and_told_once(browser: Browser, liked: str):
    keep(browser, txt2img=json.dumps({"likes": f"{UNKNOWN} {liked}", "dislikes": ""}))
    becomes(browser, liked, "")
    browser.told("aaaaaaaa… is not on this machine")
    browser.open(fresh=False)
    becomes(browser, liked, "")
    assert browser.text(".steer-toast") == ""


def silent(browser: Browser) -> None:
    browser.js("return new Promise((resolve) => setTimeout(resolve, 500))")
    assert browser.text(".steer-toast") == ""


@pytest.mark.parametrize(
    ("txt2img", "img2img", "sentences"),
    [
        ("rubbish", "null", ()),
        (
            '{"likes": "../../etc/passwd", "dislikes": "<img src=x onerror=alert(1)>"}',
            json.dumps({"likes": f"{UNKNOWN}:99", "dislikes": ""}),
            ("named by its hash", "weight"),
        ),
    ],
)
def test_whatever_else_the_storage_holds_does_no_harm(
    browser: Browser, liked: str, txt2img: str, img2img: str, sentences: tuple[str, ...]
):
    keep(browser, txt2img=txt2img, img2img=img2img)
    for sentence in sentences:
        browser.told(sentence)
    if not sentences:
        silent(browser)
    assert lines(browser, "img2img") == lines(browser) == ["", ""]


def test_what_cannot_be_read_is_told_once(browser: Browser, liked: str):
    keep(browser, txt2img="[1, 2]", img2img='{"likes": 7, "dislikes": {"a": 1}}')
    browser.told("invalid message")
    assert lines(browser, "img2img") == lines(browser) == ["", ""]
    browser.open(fresh=False)
    silent(browser)
    assert lines(browser, "img2img") == ["", ""]


SHOWN = "return getComputedStyle(document.getElementById('txt2img_{}')).display"
PREVIEW = "return document.querySelector('#txt2img_gallery_container .livePreview img') !== null"
SETTINGS = "return ['#txt2img_prompt textarea', '#txt2img_steps input'].map((s) => document.querySelector(s).value)"


def start_a_long_job(browser: Browser) -> None:
    browser.open()
    browser.type("#txt2img_prompt textarea", "a blue star")
    browser.set_number("txt2img_steps", 150)
    browser.set_number("txt2img_batch_count", 100)
    browser.click("#txt2img_generate")
    browser.until(PREVIEW)


def errors_but_of_the_broken_connection(browser: Browser) -> list[str]:
    """A page that is left in mid-job, or whose server dies, logs its broken requests."""
    known = ("aborted", "Connection errored out", "net::ERR_", "network error", "Failed to fetch")
    return [error for error in browser.errors() if not any(words in error for words in known)]


def test_a_reload_and_a_second_page_find_the_running_job_and_get_its_results(browser: Browser, screenshot):
    start_a_long_job(browser)
    browser.open(fresh=False)
    browser.until(PREVIEW)
    assert browser.js(SHOWN.format("interrupt")) == "block"
    browser.until(f"return (() => {{ {SETTINGS} }})().join() === 'a blue star,150'")
    screenshot("reloaded")
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    try:
        browser.open()
        browser.until(PREVIEW)
        # one batch of the hundred is done
        browser.until("return parseInt(document.querySelector('#txt2img_gallery_container .progress').textContent) > 1")
        browser.js("document.getElementById('txt2img_interrupt').click()")
        browser.finished()
        second = browser.images()
    finally:
        browser.driver.close()
        browser.driver.switch_to.window(first)
    browser.finished()
    assert second
    assert browser.images() == second
    assert browser.js(SHOWN.format("interrupt")) == "none"
    assert "Steps: 150" in browser.text("#html_info_txt2img")
    assert not browser.js("return localStorage.getItem('txt2img_task_id')")
    assert errors_but_of_the_broken_connection(browser) == []


def test_after_a_restart_of_the_server_the_settings_are_there_and_one_line_says_it(
    browser: Browser, page_server: Process, screenshot
):
    start_a_long_job(browser)
    page_server.process.kill()
    browser.until("return document.getElementById('server_line')?.textContent.startsWith('The server has stopped')")
    assert browser.js(SHOWN.format("interrupt")) == "none"
    screenshot("stopped")
    page_server.process.wait()
    page_server.start()
    page_server.wait()
    line = "The server stopped before this job was finished. Press Generate to start it again."
    browser.until("return document.getElementById('server_line')?.textContent === arguments[0]", line)
    browser.until(f"return (() => {{ {SETTINGS} }})().join() === 'a blue star,150'")
    assert browser.js(SHOWN.format("interrupt")) == "none"
    assert browser.js("return document.querySelectorAll('[role=alert], .toast-body').length") == 1
    screenshot("restarted")
    assert errors_but_of_the_broken_connection(browser) == []
    browser.open()  # nothing of it is left
    assert browser.text("#server_line") == ""


def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals there")
def test_told_twice_to_stop_the_server_waits_for_nothing(browser: Browser, page_server: Process):
    """In mid-job, and in silence. No test after this one has a server."""
    start_a_long_job(browser)
    for _ in range(2):
        page_server.process.send_signal(signal.SIGINT)
    assert page_server.process.wait(300) in (0, 130)
    page_server.stopped_in_silence()
