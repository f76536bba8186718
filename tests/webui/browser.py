"""Opens the WebUI's page in a real browser (Chromium with its driver), without a screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver
    from selenium.webdriver.remote.webelement import WebElement

PAGE_TIMEOUT = 120.0  # a busy machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class BrowserUnavailable(Exception):
    """No browser, driver or selenium here; the message says which."""


@contextmanager
def browser(width: int = 1280, height: int = 1600, dark: bool = False) -> Iterator[WebDriver]:
    """A headless browser window of `width` x `height` pixels. Raises BrowserUnavailable."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise BrowserUnavailable("selenium is not installed") from None
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        raise BrowserUnavailable("no Chromium with chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        f"--window-size={width},{height}",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses the root user
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield window
    finally:
        window.quit()


def open_page(window: WebDriver, url: str, dark: bool = False) -> None:
    """Loads the WebUI's page and waits until its controls are there."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    window.get(f"{url}/?__theme={'dark' if dark else 'light'}")
    WebDriverWait(window, PAGE_TIMEOUT).until(lambda w: w.find_elements(By.CSS_SELECTOR, "#txt2img_generate"))
    WebDriverWait(window, PAGE_TIMEOUT).until(lambda w: not w.find_elements(By.CSS_SELECTOR, ".loading"))


def open_accordion(window: WebDriver, title: str, tab: str = "txt2img") -> WebElement:
    """Opens the accordion whose label starts with `title` in the tab `txt2img` or `img2img`; returns it, in view."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    if tab != "txt2img":
        for button in window.find_elements(By.CSS_SELECTOR, "#tabs > .tab-nav > button"):
            if button.text.strip().lower() == tab:
                button.click()
    root = f"//*[@id='tab_{tab}']"
    label = f"{root}//*[contains(@class,'label-wrap')][.//span[starts-with(normalize-space(.), '{title}')]]"
    header = WebDriverWait(window, PAGE_TIMEOUT).until(lambda w: w.find_element(By.XPATH, label))
    if "open" not in (header.get_attribute("class") or "").split():
        window.execute_script("arguments[0].click()", header)
    WebDriverWait(window, PAGE_TIMEOUT).until(lambda _: "open" in (header.get_attribute("class") or "").split())
    accordion = header.find_element(By.XPATH, "./ancestor::*[contains(@class,'block')][1]")
    window.execute_script("arguments[0].scrollIntoView({block: 'center'})", accordion)
    return accordion


def fill(window: WebDriver, selector: str, value: object) -> None:
    """Puts `value` into an input, as typing does."""
    window.execute_script(
        "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        "for (const name of ['input', 'change', 'blur']) e.dispatchEvent(new Event(name, {bubbles: true}));",
        selector,
        str(value),
    )


def add_feedback(window: WebDriver, tab: str, kind: str, files: list[Path]) -> None:
    """Uploads images to the list `likes` or `dislikes` of a tab, and waits until they are shown."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    panel = f".steer-fabric-board[data-fabric-tab='{tab}'] [data-fabric-list='{kind}']"
    before = len(window.find_elements(By.CSS_SELECTOR, f"{panel} .steer-fabric-card"))
    window.find_element(By.CSS_SELECTOR, f"{panel} input[type=file]").send_keys("\n".join(map(str, files)))
    WebDriverWait(window, PAGE_TIMEOUT).until(
        lambda w: len(w.find_elements(By.CSS_SELECTOR, f"{panel} .steer-fabric-card img")) == before + len(files)
    )


def page_errors(window: WebDriver) -> list[str]:
    """New severe messages in the browser's console, those about files that an offline page cannot load left out."""
    entries = window.get_log("browser")
    texts = [str(entry["message"]) for entry in entries if entry["level"] == "SEVERE"]
    return [text for text in texts if "Failed to load resource" not in text and "net::ERR_" not in text]
