"""A real server with the pack's own scripts, and a real browser."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import tiny_checkpoint  # noqa: F401 - a fixture
from tests.api.process import Process

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

REMEMBER_TOASTS = """
window.toastsShown = [];
new MutationObserver(() => {
    const text = document.querySelector(".steer-toast")?.textContent;
    if (text && text !== toastsShown.at(-1)) toastsShown.push(text);
}).observe(document, {childList: true, subtree: true});
"""


@pytest.fixture(scope="session")
def page_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's data folder."""
    return tmp_path_factory.mktemp("page-data")


@pytest.fixture(scope="session")
def page_server(tiny_checkpoint: Path, page_data: Path) -> Iterator[Process]:  # noqa: F811
    """`run.py serve` with the pack's scripts and a tiny model that generates 64 x 64 in two steps."""
    _need_browser()
    defaults = {"width": 64, "height": 64, "steps": 4, "cfg_scale": 3.0, "sampler_name": "Euler"}
    (tiny_checkpoint.parent / "tiny.defaults.json").write_text(json.dumps(defaults), encoding="utf-8")
    server = Process("--checkpoint", str(tiny_checkpoint), "--data-dir", str(page_data))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def _need_browser() -> None:
    if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
        pytest.skip("no browser: Debian's packages chromium and chromium-driver are not installed")
    pytest.importorskip("selenium", reason="no browser test without the package selenium")


class Browser:
    """The page in a browser, with the few things that a user does."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, fresh: bool = True) -> None:
        """Loads the page; `fresh` makes it forget what it kept."""
        if fresh and self.driver.current_url.startswith(self.address):
            self.js(
                "recalled.length = 0; sessionStorage.clear(); localStorage.clear()"
            )  # memory.js keeps the settings when the page is left
        self.driver.get(self.address)
        self.until("return typeof uiIsLoaded !== 'undefined' && uiIsLoaded")
        self.until("return Object.keys(opts).length > 0")
        self.js(
            "const finish = taskFinished; window.finishedJobs = 0;"
            "taskFinished = (tab) => { finish(tab); window.finishedJobs += 1; };"
        )

    def resize(self, width: int, height: int) -> None:
        """The size of the window's content, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, code: str, *arguments: Any, seconds: float = 300.0) -> Any:
        """Waits until the script gives something true, and returns that; as long as a busy machine may take."""
        end = time.monotonic() + seconds
        while True:
            value = self.js(code, *arguments)
            if value:
                return value
            assert time.monotonic() < end, f"waited in vain for: {code}\n{self.text('#html_log_txt2img')}"
            time.sleep(0.05)

    def told(self, sentence: str) -> None:
        """Waits until the page has shown a message with these words; it takes them away again after a while."""
        self.until("return toastsShown.some((text) => text.includes(arguments[0]))", sentence)

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent || ''", selector)).strip()

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.find(selector).click()

    def type(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        box = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", box)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text)

    def set_number(self, ident: str, value: float) -> None:
        from selenium.webdriver.common.keys import Keys

        self.type(f"#{ident} input[type=number]", str(value))
        self.find(f"#{ident} input[type=number]").send_keys(Keys.TAB)

    def images(self, tab: str = "txt2img") -> list[str]:
        """Addresses of the images in the gallery, in their order."""
        found = self.js(
            f"return Array.from(document.querySelectorAll('#{tab}_gallery .thumbnail-item img')).map((i) => i.src)"
        )
        return list(dict.fromkeys(found))

    def finished(self, tab: str = "txt2img") -> None:
        """Waits for the end of the job that was started."""
        self.until(f"return !('{tab}' in runningTasks)")
        self.until(f"return document.querySelector('#html_log_{tab}').textContent.trim().length > 0")

    def generate(self, tab: str = "txt2img") -> list[str]:
        """Presses Generate, waits for the end, and returns the new images."""
        before = self.images(tab)
        done = self.js("return window.finishedJobs")
        self.click(f"#{tab}_generate")
        self.until("return window.finishedJobs > arguments[0]", done)
        self.finished(tab)
        if not self.text(f"#html_log_{tab} .error"):
            self.until(
                "return JSON.stringify(arguments[0]) !== JSON.stringify(Array.from(new Set(Array.from("
                f"document.querySelectorAll('#{tab}_gallery .thumbnail-item img')).map((i) => i.src))))",
                before,
            )
        return self.images(tab)

    def outside_requests(self) -> list[str]:
        """Addresses that the page requested and that are not this server's."""
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(str(message["params"]["request"]["url"]))
        return [url for url in asked if not url.startswith((self.address, "data:", "blob:", "chrome", "about:"))]

    def errors(self) -> list[str]:
        """What the page's scripts complained about."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def opened(address: str, profile: Path) -> Iterator[Browser]:
    """A new browser for a server's page; `profile` is the folder of its data."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1366,768"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        made = Browser(driver, address)
        made.resize(1366, 768)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": REMEMBER_TOASTS})
        yield made
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def browser(page_server: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(f"http://127.0.0.1:{page_server.port}/", tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(autouse=True)
def a_second_try_begins_with_a_fresh_page(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "execution_count", 1) > 1 and "browser" in request.fixturenames:
        request.getfixturevalue("browser").open()


@pytest.fixture
def screenshot(browser: Browser) -> Callable[[str], None]:
    """Writes an image of the page into the folder that STEER_SCREENSHOTS names, if it names one."""

    def take(name: str) -> None:
        if folder := os.environ.get("STEER_SCREENSHOTS"):
            browser.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    return take
