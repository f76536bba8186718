"""A person's round in a real browser: generate, press 👍, generate again, see the effect, take it back.

Skipped where there is no Chromium with its driver.
"""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shared.pictures import as_file, noisy
from tests.standalone.conftest import Running
from tests.webui.browser import BrowserUnavailable, browser, open_page

TIMEOUT = 60.0


@pytest.fixture(scope="module")
def url(host: Running) -> Iterator[str]:
    """The standalone page, served on a free port."""
    import uvicorn

    from standalone.page.server import build_app

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(host.host), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(TIMEOUT)


class Visitor:
    """One browser window at the page, with what a person does there."""

    def __init__(self, window: Any, url: str) -> None:
        self.window = window
        open_page(window, url)
        self.wait(lambda: self.all("#txt2img_generate"))
        time.sleep(1)  # the page's own scripts start after its elements are there

    def all(self, selector: str) -> list[Any]:
        return list(self.window.find_elements("css selector", selector))

    def js(self, code: str, *arguments: Any) -> Any:
        return self.window.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except StaleElementReferenceException:  # drawn anew just now
                pass
            time.sleep(0.1)
        pytest.fail(f"not within {TIMEOUT:g} s")

    def fill(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.wait(lambda: self.all(selector))[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def generate(self) -> tuple[bytes, str]:
        """Press Generate; the image's file and its infotext."""
        before = self.source()
        self.js("arguments[0].click()", self.all("#txt2img_generate")[0])
        self.wait(lambda: self.source() not in ("", before))
        time.sleep(1)
        data = self.window.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then(r => r.blob()).then(b => {"
            "const f = new FileReader(); f.onload = () => done(f.result); f.readAsDataURL(b); });",
            self.source(),
        )
        return base64.b64decode(data.split(",")[1]), self.all("#html_info_txt2img")[0].text

    def source(self) -> str:
        images = self.all("#txt2img_gallery img:not(.steer-fabric-layer img)")
        return str(images[0].get_attribute("src")) if images else ""

    def mark(self, kind: str) -> Any:
        return self.wait(lambda: self.all(f'.steer-fabric-marks:not(.steer-fabric-tiny) [data-fabric-kind="{kind}"]'))[
            0
        ]

    def ids(self, name: str) -> list[str]:
        return str(
            self.js(f"return document.querySelector('#fabric_txt2img_{name} :is(textarea, input)').value")
        ).split()

    def status(self) -> str:
        lines = self.all("#fabric_txt2img_status .steer-status")
        return str(lines[0].text) if lines else ""

    def give(self, kind: str, event: str, data: bytes) -> None:
        """Drop or paste an image onto a list."""
        self.js(
            "const [kind, name, text] = arguments;"
            "const panel = document.querySelector(`[data-fabric-tab=txt2img] .steer-fabric-${kind}`); panel.focus();"
            "const file = new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], 'a.png', {type: 'image/png'});"
            "const held = new DataTransfer(); held.items.add(file);"
            "panel.dispatchEvent(name === 'drop'"
            " ? new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: held})"
            " : new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: held}));",
            kind,
            event,
            base64.b64encode(data).decode("ascii"),
        )


@pytest.fixture
def visit(url: str) -> Iterator[Callable[[], Visitor]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def enter() -> Visitor:
            try:
                return Visitor(stack.enter_context(browser()), url)
            except BrowserUnavailable as reason:
                pytest.skip(str(reason))

        yield enter


def test_like_generate_see_the_effect_and_take_it_back(visit: Callable[[], Visitor]) -> None:
    person = visit()
    person.fill("#txt2img_prompt textarea", "a red circle")
    person.fill("#txt2img_steps input[type=number]", "3")
    for side in ("width", "height"):
        person.fill(f"#txt2img_{side} input[type=number]", "64")
    person.fill("#txt2img_seed input", "1")
    plain, infotext = person.generate()
    assert "FABRIC" not in infotext

    person.mark("likes").click()
    (liked,) = person.wait(lambda: person.ids("likes"))
    person.wait(lambda: person.mark("likes").get_attribute("aria-pressed") == "true")
    person.wait(lambda: person.status().startswith("1 like, steps 1-2 of 3"))
    guided, infotext = person.generate()
    assert guided != plain
    assert f"FABRIC likes: {liked[:16]}" in infotext

    # the new image differs from the liked one: it is not marked, and a dislike goes to the other list
    person.wait(lambda: person.mark("likes").get_attribute("aria-pressed") == "false")
    person.mark("dislikes").click()
    person.wait(lambda: person.status().startswith("1 like, 1 dislike"))
    person.mark("dislikes").click()
    person.wait(lambda: not person.ids("dislikes"))

    remove = person.wait(lambda: person.all(f'[data-fabric-id="{liked}"] .steer-fabric-remove'))[0]
    person.js("arguments[0].click()", remove)
    person.wait(lambda: not person.ids("likes"))
    person.wait(lambda: person.status().startswith("No feedback yet"))
    again, infotext = person.generate()
    assert again == plain
    assert "FABRIC" not in infotext


def test_a_grid_has_no_thumbs(visit: Callable[[], Visitor]) -> None:
    person = visit()
    person.fill("#txt2img_steps input[type=number]", "1")
    for side in ("width", "height"):
        person.fill(f"#txt2img_{side} input[type=number]", "64")
    person.fill("#txt2img_batch_size input[type=number]", "2")
    person.generate()
    several = "const page = window.fabricPage; return page.showsSeveral(page.tabs.txt2img, arguments[0])"
    thumbs = person.wait(lambda: len(found := person.all("#txt2img_gallery .thumbnails img")) == 3 and found)
    sources = [str(thumb.get_attribute("src")) for thumb in thumbs]
    assert [person.js(several, source) for source in sources] == [True, False, False]

    def choose(index: int, marks: bool) -> None:
        person.js("arguments[0].click()", person.all("#txt2img_gallery .thumbnails img")[index])
        person.wait(lambda: person.source() == sources[index])
        person.wait(lambda: bool(person.all(".steer-fabric-marks:not(.steer-fabric-tiny)")) == marks)

    choose(0, marks=False)
    choose(1, marks=True)
    choose(0, marks=False)


def test_pictures_are_added_by_file_drop_and_paste_and_weighted(visit: Callable[[], Visitor], tmp_path: Path) -> None:
    person = visit()
    files = []
    for seed in range(2):
        files.append(tmp_path / f"{seed}.png")
        files[-1].write_bytes(as_file(noisy(seed)))
    label = person.wait(lambda: person.all("#fabric_txt2img .label-wrap, #fabric_txt2img > button"))[0]
    if not person.all("[data-fabric-tab=txt2img] input[type=file]"):
        person.js("arguments[0].click()", label)
    upload = person.wait(lambda: person.all("[data-fabric-tab=txt2img] .steer-fabric-likes input[type=file]"))[0]
    upload.send_keys("\n".join(map(str, files)))
    person.wait(lambda: len(person.ids("likes")) == 2)
    person.give("dislikes", "drop", as_file(noisy(2)))
    person.wait(lambda: len(person.ids("dislikes")) == 1)
    person.give("dislikes", "paste", as_file(noisy(0)))  # moves from the likes: the last wish counts
    person.wait(lambda: len(person.ids("dislikes")) == 2 and len(person.ids("likes")) == 1)
    person.wait(lambda: len(person.all(".steer-fabric-card")) == 3)
    person.fill(".steer-fabric-likes .steer-fabric-weight input", "0.5")
    person.wait(lambda: person.ids("likes")[0].endswith(":0.5"))
    person.give("likes", "drop", b"not a picture")
    person.wait(lambda: any("cannot be read" in box.text for box in person.all(".steer-toast")))
    assert len(person.ids("likes")) == 1

    stranger = visit()
    assert stranger.ids("likes") == []
    assert stranger.ids("dislikes") == []
