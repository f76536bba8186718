"""Screenshots of the page for the docs, with `shapes`, in minutes: `python -m tests.page.screenshots FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.api.process import Process
from tests.page.conftest import Browser, opened

DESK, PHONE = (1366, 768), (390, 844)


def take(browser: Browser, path: Path, *, dark: bool = False, size: tuple[int, int] = DESK) -> None:
    """A picture of the window, and light again afterwards."""
    browser.resize(*size)
    browser.js("document.body.classList.toggle('dark', arguments[0])", dark)
    browser.js("return new Promise((resolve) => setTimeout(resolve, 1200))")  # colours fade, results settle
    browser.driver.save_screenshot(str(path))
    browser.js("document.body.classList.remove('dark')")
    browser.resize(*DESK)


def generate(browser: Browser, prompt: str, seed: int, count: int, tab: str = "txt2img") -> None:
    browser.type(f"#{tab}_prompt textarea", prompt)
    browser.type(f"#{tab}_seed input", str(seed))
    browser.set_number(f"{tab}_batch_size", count)
    browser.generate(tab)
    browser.js("window.scrollTo(0, 0)")


def like(browser: Browser, count: int) -> None:
    """Likes every image of the batch, without its grid."""
    browser.js(
        "const {tabs, addUrl} = fabricPage; arguments[0].forEach((url) => addUrl(tabs.txt2img, 'likes', url))",
        browser.images()[-count:],
    )
    browser.until(
        "return document.querySelectorAll('[data-fabric-tray=txt2img] .steer-fabric-thumb').length === arguments[0]",
        count,
    )
    browser.js("inputAccordionChecked('fabric_txt2img', true)")


def edit(browser: Browser, prompt: str, source: str, target: str) -> None:
    """Edits the txt2img image that is shown with pix2pix-zero, and compares in the viewer."""
    box = "#pix2pix_zero_img2img"
    browser.click("#txt2img_send_to_img2img")
    browser.until("return document.querySelector('#img2img_image img') !== null")
    browser.js("inputAccordionChecked('pix2pix_zero_img2img', true)")
    browser.until(f"return document.querySelector('{box}_more .label-wrap') !== null")
    browser.click(f"{box}_more .label-wrap")
    browser.until(f"return document.querySelector('{box}_direction_from') !== null")
    browser.click(f"{box}_direction_from label:last-child")
    browser.type(f"{box}_source textarea, {box}_source input", source)
    browser.type(f"{box}_target textarea, {box}_target input", target)
    browser.until(f"return document.querySelector('{box}_status').textContent.includes('swapped in the caption')")
    generate(browser, prompt, 3, 1, "img2img")
    browser.js("openLightbox('img2img')")
    browser.until("return document.getElementById('lightboxModal').classList.contains('can-compare')")
    browser.find("#lightboxModal").send_keys("c")
    browser.js("moveDivider(0.37)")


def main(folder: Path) -> None:
    """Take all six."""
    with tempfile.TemporaryDirectory() as temporary:
        server = Process("--data-dir", f"{temporary}/data")
        try:
            server.wait()
            with opened(f"http://127.0.0.1:{server.port}/", Path(temporary) / "browser") as browser:
                browser.open()
                take(browser, folder / "page_first_run.png")
                generate(browser, "large blue circles on a white background", 3, 2)
                like(browser, 2)
                generate(browser, "triangles on a grey background", 21, 4)
                take(browser, folder / "page_after_like.png")
                take(browser, folder / "page_phone.png", size=PHONE)
                browser.js("openLightbox('txt2img')")
                take(browser, folder / "page_viewer.png", dark=True)
                browser.js("closeLightbox()")
                generate(browser, "large blue circles on a white background", 3, 1)
                edit(browser, "large blue circles on a white background", "blue", "red")
                take(browser, folder / "page_edit.png")
                browser.js("closeLightbox()")
                browser.js("openTab('tab_history')")
                browser.until("return document.querySelector('#tab_history img') !== null")
                take(browser, folder / "page_history.png", dark=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
