"""The cascade in the real WebUI, with tiny random stages: candidates, upscaling, and sending an image to other tabs.

What the WebUI lacks for it comes from the package index; these tests are skipped where that cannot be reached.
"""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.cascade import models
from tests.dreambooth.models import put
from tests.webui.browser import BrowserUnavailable, browser, fill, open_page
from tests.webui.client import JSON, ApiError
from tests.webui.methods.test_page import text_of, wait
from tests.webui.server import REPO, WebUI

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "cascade.py").is_file(), reason="the script is not there"),
]
ROUTES = "/cascade/v1"
PATIENCE = 900.0  # a busy machine
SMALL: JSON = {"steps": 3, "stage2_steps": 3, "count": 3}


@pytest.fixture(scope="module")
def server(with_pack: WebUI) -> WebUI:
    """The WebUI, with the stages in models/cascade."""
    models.cascade(with_pack.data / "models" / "cascade")
    return with_pack


def finished(server: WebUI) -> JSON:
    """Waits for the end of the job; its status."""
    end = time.monotonic() + PATIENCE
    while (status := server.client.get(f"{ROUTES}/status"))["running"]:
        assert time.monotonic() < end, f"the job did not end: {status}"
        time.sleep(0.5)
    if "package index" in status["job"]["error"]:
        pytest.skip(status["job"]["error"])
    assert (status["job"]["status"], status["job"]["error"]) == ("done", "")
    return dict(status)


def test_from_a_prompt_to_an_upscaled_image(server: WebUI) -> None:
    *stages, shipped = server.client.get(f"{ROUTES}/stages")["stages"]
    assert (stages, shipped) == (["IF-I", "IF-II", "x4-upscaler"], "shapes-cascade")
    before = len(server.log())
    server.client.post(f"{ROUTES}/start", {**SMALL, "prompt": "a red cat", "stages": stages, "last_stage": 1})
    status = finished(server)
    assert str(server.data) not in str(status)
    candidates = server.client.get(f"{ROUTES}/images")["images"]
    assert [image["stage"] for image in candidates] == [1, 1, 1]
    chosen = {"resume_from": [candidates[1]["name"]], "stage2_prompt": "an oil painting of {subject}", "last_stage": 2}
    server.client.post(f"{ROUTES}/start", {**SMALL, "stages": stages, **chosen})
    finished(server)
    (made,) = server.client.get(f"{ROUTES}/images")["images"]
    assert made["stage"] == 2 and "an oil painting of {subject}" in made["info"]
    encoded = server.client.get(f"{ROUTES}/image?name={made['name']}")["image"]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (32, 32)
    assert server.errors(before) == []


def test_what_is_wrong_is_a_sentence(server: WebUI) -> None:
    with pytest.raises(ApiError, match="Write a prompt first"):
        server.client.post(f"{ROUTES}/start", {"stages": ["IF-I"]})


@pytest.fixture(scope="module")
def page(server: WebUI) -> Iterator[WebDriver]:
    """The page with the tab open."""
    try:
        with browser() as opened:
            open_page(opened, server.client.url)
            open_tab(opened, "Cascade")
            yield opened
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))


def open_tab(page: WebDriver, name: str) -> None:
    find = "[...gradioApp().querySelectorAll('#tabs > .tab-nav > button, #tabs button[role=tab]')]"
    script = f"const tab = {find}.find(one => one.textContent.trim() === arguments[0]); tab?.click(); return !!tab"
    wait(page, lambda: page.execute_script(script, name))


def shot(page: WebDriver, name: str) -> None:
    if folder := os.environ.get("STEER_SCREENSHOTS"):
        page.save_screenshot(str(Path(folder) / f"{name}.png"))


def press(page: WebDriver, name: str) -> None:
    page.execute_script(
        "const found = gradioApp().querySelector(arguments[0]);"
        "(found.matches('button') ? found : found.querySelector('button')).click()",
        f"#cascade_{name}",
    )


def count(page: WebDriver, selector: str) -> int:
    return int(page.execute_script("return gradioApp().querySelectorAll(arguments[0]).length", selector))


@pytest.mark.browser
def test_the_tab_generates_upscales_and_sends(page: WebDriver, server: WebUI) -> None:
    wait(page, lambda: count(page, "#cascade_sheet .steer-cascade-tick") == 4)  # what the routes made
    fill(page, "#cascade_prompt textarea", "a photo of a dog")
    fill(page, "#cascade_count input[type=number]", 2)
    press(page, "generate")
    wait(page, lambda: "a-photo-of-a-dog" in text_of(page, "#cascade_panel"))
    finished(server)
    wait(page, lambda: count(page, "#cascade_sheet .steer-cascade-tick") == 2)
    shot(page, "webui-cascade-candidates")
    page.execute_script("gradioApp().querySelectorAll('.steer-cascade-tick')[1].click()")
    fill(page, "#cascade_last_stage input[type=number]", 2)
    press(page, "upscale")
    wait(page, lambda: "a-photo-of-a-dog-up" in text_of(page, "#cascade_panel"))
    finished(server)
    wait(page, lambda: count(page, "#cascade_sheet .steer-cascade-tick") == 3)
    page.execute_script("gradioApp().querySelectorAll('.steer-cascade-tick:checked').forEach(box => box.click())")
    page.execute_script("gradioApp().querySelectorAll('.steer-cascade-tick')[0].click()")
    shot(page, "webui-cascade-upscaled")
    for target, box in (("img2img", "#img2img_image"), ("extras", "#extras_image")):
        open_tab(page, "Cascade")
        press(page, f"to_{target}")
        wait(page, lambda box=box: count(page, f"{box} img, {box} canvas") > 0)
        time.sleep(2)
        shot(page, f"webui-cascade-{target}")
    open_tab(page, "Cascade")
    press(page, "to_likes")
    wait(page, lambda: count(page, ".steer-fabric-card") > 0)


@pytest.mark.browser
def test_a_cascade_is_trained_in_the_dreambooth_tab_and_used(page: WebDriver, server: WebUI, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    folder = server.data / "models" / "cascade" / "larger"  # stages below 32 pixels cannot be trained
    models.first_stage(folder / "IF-I", sample_size=32)
    models.second_stage(folder / "IF-II", sample_size=64)
    before, base = len(server.log()), "larger (pixel cascade)"
    open_page(page, server.client.url)
    open_tab(page, "DreamBooth")
    photos = [put(tmp_path, f"{number}.png", 96, 96, number) for number in range(3)]
    page.find_element("css selector", "#dreambooth_photos input[type=file]").send_keys("\n".join(map(str, photos)))
    wait(page, lambda: count(page, "#dreambooth_photos_shown img") == 3)
    fill(page, "#dreambooth_class_noun :is(textarea, input)", "dog")
    page.execute_script("gradioApp().querySelector('#dreambooth_refresh').click()")  # the page is older than the stages
    box = page.find_element("css selector", "#dreambooth_base input")
    wait(page, lambda: box.click() or base in text_of(page, "#dreambooth_base, ul.options"), 60)
    box.send_keys(Keys.CONTROL, "a", Keys.NULL, base, Keys.ENTER)
    wait(page, lambda: "become a cascade" in text_of(page, "#dreambooth_line"))
    for name, value in (("identifier", "ohwx"), ("steps", 3), ("sample_every", 3), ("name", "rex-if")):
        fill(page, f"#dreambooth_{name} :is(textarea, input)", value)
    wait(page, lambda: "photos of a dog" in text_of(page, "#dreambooth_line"))
    page.execute_script("gradioApp().querySelector('#dreambooth_train').click()")
    wait(page, lambda: "rex-if" in text_of(page, "#dreambooth_panel"), PATIENCE)
    wait(page, lambda: re.search('"rex-if" (is done|failed)', text_of(page, "#dreambooth_panel")), PATIENCE)
    assert "is done" in text_of(page, "#dreambooth_panel")
    shot(page, "webui-cascade-trained")
    assert (server.data / "models" / "cascade" / "rex-if-cascade" / "IF-II").is_dir()
    page.execute_script("gradioApp().querySelector('#dreambooth_use').click()")
    prompt = "return gradioApp().querySelector('#cascade_prompt textarea').value"
    wait(page, lambda: "ohwx dog" in str(page.execute_script(prompt)))
    server.client.post(f"{ROUTES}/start", {**SMALL, "prompt": "a ohwx dog", "stages": ["rex-if-cascade"]})
    finished(server)
    assert server.errors(before) == []
