"""DreamBooth in the real WebUI: a run starts from it, and its result loads and changes the image.

What the WebUI lacks for training comes from the package index; these tests are skipped where that cannot be reached.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from lib_methods.jobs.packages import REQUIREMENTS
from tests.dreambooth.models import picture, put
from tests.webui.browser import BrowserUnavailable, browser, fill, open_page, page_errors
from tests.webui.client import JSON, ApiError, encode_image
from tests.webui.methods.test_page import text_of, wait
from tests.webui.server import REPO, WebUI

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "dreambooth.py").is_file(), reason="the script is not there"),
]
ROUTES = "/dreambooth/v1"
PATIENCE = 1200.0  # a busy machine
JOB: JSON = {"steps": 3, "width": 64, "height": 64, "seed": 5, "cfg_scale": 5, "sampler_name": "Euler"}
SMALL: JSON = {"class_noun": "dog", "identifier": "ohwx", "steps": 4, "resolution": 64, "rate": 0.01, "sample_every": 4}


def photos() -> list[str]:
    return [encode_image(picture(96, 80, number)) for number in range(4)]


def finished(server: WebUI) -> JSON:
    """Waits for the end of the training; its status."""
    end = time.monotonic() + PATIENCE
    while (status := server.client.get(f"{ROUTES}/status"))["running"]:
        assert time.monotonic() < end, f"the training did not end: {status}"
        time.sleep(0.5)
    error = str(status["training"]["error"])
    if "package index" in error:
        pytest.skip(error)
    return dict(status)


def train(server: WebUI, **more: Any) -> JSON:
    server.client.post(f"{ROUTES}/start", {**SMALL, "photos": photos(), **more})
    return finished(server)


def drawn(server: WebUI, prompt: str, **more: Any) -> Any:
    return server.client.generate({**JOB, "prompt": prompt, **more})


def packages_of(server: WebUI) -> dict[str, str]:
    """Versions of all packages in the WebUI's own environment, by their canonical names."""
    listing = (
        "import json; from importlib import metadata;"
        " print(json.dumps([(d.name, d.version) for d in metadata.distributions()]))"
    )
    answer = subprocess.run(
        [server.installation.python, "-I", "-c", listing], capture_output=True, text=True, check=True
    )
    found = reversed(json.loads(answer.stdout))  # of two of a name the first one is imported
    return {canonicalize_name(name): version for name, version in found}


@dataclass
class Trained:
    """A run, and what was seen around it. packages: the WebUI's, before. images: before, during and after it.
    log: of the WebUI, from the start of the run to the end of the image during it."""

    status: JSON
    packages: dict[str, str]
    images: list[Any]
    log: str

    def __getitem__(self, name: str) -> Any:
        return self.status[name]


@pytest.fixture(scope="module")
def lora(with_pack: WebUI) -> Trained:
    """A LoRA trained once, while the WebUI also generates an image."""
    packages, before = packages_of(with_pack), len(with_pack.log())
    images = [drawn(with_pack, "a dog")]
    started = len(with_pack.log())
    with_pack.client.post(f"{ROUTES}/start", {**SMALL, "photos": photos(), "name": "rex-lora"})
    assert with_pack.client.get(f"{ROUTES}/status")["running"]
    images.append(drawn(with_pack, "a dog"))
    log = with_pack.log()[started:]
    status = finished(with_pack)
    images.append(drawn(with_pack, "a dog"))
    assert with_pack.errors(before) == []
    return Trained(status, packages, images, log)


def test_a_lora_is_trained_while_pictures_are_drawn(lora: Trained, with_pack: WebUI) -> None:
    assert lora["training"]["error"] == ""
    assert lora["training"]["status"] == "done"
    assert lora["training"]["prompt"] == "a ohwx dog"
    assert (lora["step"], lora["steps"]) == (4, 4)
    assert len(lora["losses"]) == 4
    assert lora["samples"], "samples come as the training goes on"
    assert (with_pack.data / "models" / "Lora" / "rex-lora.safetensors").is_file()
    assert str(with_pack.data) not in str(lora), "no folder of the server is told"


def test_the_image_is_the_same_before_during_and_after_a_run(lora: Trained) -> None:
    before, during, after = (image.pixels for image in lora.images)
    assert before == during == after


def test_the_forks_model_makes_room(lora: Trained, with_pack: WebUI) -> None:
    if not with_pack.installation.host.guesses:
        pytest.skip("AUTOMATIC1111's WebUI does not say in its log where its model is")
    assert re.search(r"Requested to load|To load target model|Trying to free all memory", lora.log)


def test_the_hosts_packages_are_as_they_were(lora: Trained, with_pack: WebUI) -> None:
    assert packages_of(with_pack) == lora.packages
    needed = {canonicalize_name(package.name): Version(package.least) for package in REQUIREMENTS}
    lacking = {name for name, least in needed.items() if Version(lora.packages.get(name, "0")) < least}
    found = (with_pack.data / "dreambooth" / "packages").rglob("*.dist-info/METADATA")
    own = {canonicalize_name(file.parent.name.split("-")[0]) for file in found}
    assert own == lacking, "what was missing is in the pack's own folder"


def test_the_lora_loads_and_changes_the_picture(lora: Trained, with_pack: WebUI) -> None:
    usage = with_pack.client.post(f"{ROUTES}/use")
    assert usage == {"prompt": "a ohwx dog <lora:rex-lora:1>", "checkpoint": ""}
    before = len(with_pack.log())
    plain = drawn(with_pack, "a ohwx dog")
    with_lora = drawn(with_pack, str(usage["prompt"]))
    assert plain.pixels != with_lora.pixels
    assert "rex-lora" in with_lora.infotexts[0], "the host knows the LoRA by its hash"
    assert drawn(with_pack, "a ohwx dog").pixels == plain.pixels
    assert with_pack.errors(before) == []
    log = with_pack.log()[before:]
    assert "not found" not in log and "unmatched" not in log.lower(), "every one of its weights has its place"


def test_the_loras_card_is_read(lora: Trained, with_pack: WebUI) -> None:
    known = {entry["name"]: entry for entry in with_pack.client.get("/sdapi/v1/loras")}
    assert known["rex-lora"]["metadata"]["ss_output_name"] == "rex-lora"


def test_a_checkpoint_is_trained_loads_and_changes_the_picture(with_pack: WebUI) -> None:
    before = len(with_pack.log())
    plain = drawn(with_pack, "a ohwx dog")
    status = train(with_pack, kind="full", name="rex-full", class_images=2, class_steps=2, rate=0.001)
    assert status["training"]["error"] == ""
    assert status["training"]["results"][0] == "rex-full.safetensors"
    usage = with_pack.client.post(f"{ROUTES}/use")
    assert str(usage["checkpoint"]).startswith("rex-full.safetensors")
    models = with_pack.client.get("/sdapi/v1/sd-models")
    (before_it,) = [m["title"] for m in models if "rex-full" not in m["title"]]  # the option may be empty in a fork
    try:
        with_pack.client.post("/sdapi/v1/options", {"sd_model_checkpoint": usage["checkpoint"]})
        trained = drawn(with_pack, str(usage["prompt"]))
    finally:
        with_pack.client.post("/sdapi/v1/options", {"sd_model_checkpoint": before_it})
    assert "rex-full" in trained.infotexts[0]
    assert trained.pixels != plain.pixels
    assert drawn(with_pack, "a ohwx dog").pixels == plain.pixels, "the WebUI's own model is what it was"
    assert with_pack.errors(before) == []


def test_generation_works_after_a_run_that_fails(lora: Trained, with_pack: WebUI) -> None:
    """The model also makes room, and comes back, with a LoRA in it."""
    before = len(with_pack.log())
    plain = drawn(with_pack, "a dog")
    with_lora = drawn(with_pack, "a ohwx dog <lora:rex-lora:1>")
    status = train(with_pack, name="rex-broken", memory=0.001)
    assert status["training"]["status"] == "failed"
    assert status["training"]["error"], "a sentence says why"
    assert str(with_pack.data) not in str(status)
    assert drawn(with_pack, "a ohwx dog <lora:rex-lora:1>").pixels == with_lora.pixels
    assert drawn(with_pack, "a dog").pixels == plain.pixels
    assert with_pack.errors(before) == []


def test_the_plan_is_made_without_diffusers_and_without_a_model(with_pack: WebUI) -> None:
    before = len(with_pack.log())
    plain = drawn(with_pack, "a dog")
    plan = with_pack.client.post(f"{ROUTES}/plan", {**SMALL, "photos": photos()})
    assert (plan["steps"], plan["prior"], plan["estimated"]) == (4, "model", True)
    assert plan["bytes"] > 0 and plan["result_bytes"] > 0 and plan["seconds"] > 0
    full = with_pack.client.post(f"{ROUTES}/plan", {**SMALL, "photos": 4, "kind": "full"})
    assert full["result_bytes"] > plan["result_bytes"]
    with pytest.raises(ApiError, match="are not enough"):
        with_pack.client.post(f"{ROUTES}/plan", {**SMALL, "photos": 4, "memory": 0.01})
    assert drawn(with_pack, "a dog").pixels == plain.pixels
    assert with_pack.errors(before) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"photos": []}, "photos"),
        ({"photos": ["/etc/passwd"]}, "image"),
        ({"photos": None, "class_noun": ""}, "photos"),
        ({"class_noun": ""}, "what the subject is"),
        ({"base": "no such model"}, "base model"),
        ({"stepz": 5}, "steps"),
        ({"name": "../x"}, "name"),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(with_pack: WebUI, fields: JSON, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        with_pack.client.post(f"{ROUTES}/start", {**SMALL, "photos": photos(), **fields})
    assert refused.value.status == 422
    assert said in refused.value.body
    assert str(with_pack.data) not in refused.value.body


@pytest.fixture(scope="module")
def window(with_pack: WebUI) -> Iterator[WebDriver]:
    try:
        with browser(width=1366, height=1100) as opened:
            yield opened
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))


def open_tab(window: WebDriver, server: WebUI) -> None:
    open_page(window, server.client.url)
    window.execute_script(
        "for (const b of document.querySelectorAll('#tabs > .tab-nav > button'))"
        " if (b.textContent.trim() === 'DreamBooth') b.click();"
    )
    seen = "return document.querySelector('#dreambooth_seen textarea, #dreambooth_seen input').value"
    wait(window, lambda: window.execute_script(seen))  # the page has asked how far the training is


@pytest.mark.browser
def test_from_the_tab_to_the_prompt(window: WebDriver, with_pack: WebUI, tmp_path: Path) -> None:
    before = len(with_pack.log())
    open_tab(window, with_pack)
    page_errors(window)  # those of the WebUI itself
    files = [put(tmp_path, f"{number}.png", 96, 96, number) for number in range(4)]
    window.find_element("css selector", "#dreambooth_photos input[type=file]").send_keys("\n".join(map(str, files)))
    wait(window, lambda: len(window.find_elements("css selector", "#dreambooth_photos_shown img")) == 4)
    fill(window, "#dreambooth_class_noun textarea, #dreambooth_class_noun input", "dog")
    wait(window, lambda: "4 photos of a dog become a LoRA" in text_of(window, "#dreambooth_line"))
    for name, value in (("steps", 4), ("resolution", 64), ("sample_every", 4), ("name", "rex-page")):
        fill(window, f"#dreambooth_{name} textarea, #dreambooth_{name} input", value)
    wait(window, lambda: "4 steps" in text_of(window, "#dreambooth_line"))
    planned = "#dreambooth_line .steer-dreambooth-plan"
    assert text_of(window, planned).startswith("Steps4Time, estimated"), "the plan is there before the training"
    assert "the CPU" in text_of(window, planned)
    window.execute_script("document.querySelector('#dreambooth_train').click()")
    wait(window, lambda: "rex-page" in text_of(window, "#dreambooth_panel"))
    open_tab(window, with_pack)  # a page that comes later finds the training again
    finished(with_pack)
    wait(window, lambda: '"rex-page" is done' in text_of(window, "#dreambooth_panel"))
    wait(window, lambda: bool(window.find_elements("css selector", "#dreambooth_samples img")))
    window.execute_script("document.querySelector('#dreambooth_use').click()")
    prompt = "return document.querySelector('#txt2img_prompt textarea').value"
    wait(window, lambda: "<lora:rex-page:1>" in str(window.execute_script(prompt)))
    assert page_errors(window) == []
    assert with_pack.errors(before) == []


@pytest.mark.browser
def test_photos_that_take_long_to_come_are_there_in_the_end(
    window: WebDriver, with_pack: WebUI, tmp_path: Path
) -> None:
    """gradio 3 lets an upload go when the page gets another answer meanwhile: it looks, and somebody types."""
    open_tab(window, with_pack)
    files = [put(tmp_path, f"{number}.png", 96, 96, number) for number in range(3)]
    with slow_answers(window, 2500):
        window.find_element("css selector", "#dreambooth_photos input[type=file]").send_keys("\n".join(map(str, files)))
        for typed in ("d", "do", "dog"):
            fill(window, "#dreambooth_class_noun textarea, #dreambooth_class_noun input", typed)
            time.sleep(0.3)
        wait(window, lambda: len(window.find_elements("css selector", "#dreambooth_photos_shown img")) == 3)
    wait(window, lambda: "3 photos of a dog become a LoRA" in text_of(window, "#dreambooth_line"))


@contextmanager
def slow_answers(window: WebDriver, milliseconds: int) -> Iterator[None]:
    """Within the block every answer of the server takes at least so long."""

    def wait_for(latency: int) -> None:
        window.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": False, "latency": latency, "downloadThroughput": -1, "uploadThroughput": -1},
        )

    window.execute_cdp_cmd("Network.enable", {})
    wait_for(milliseconds)
    try:
        yield
    finally:
        wait_for(0)


@pytest.mark.browser
def test_cancel_and_resume_in_the_tab(window: WebDriver, with_pack: WebUI) -> None:
    with_pack.client.post(f"{ROUTES}/start", {**SMALL, "photos": photos(), "name": "rex-long", "steps": 100000})
    open_tab(window, with_pack)
    for button in ("", "resume"):
        if button:
            window.execute_script(f"document.querySelector('#dreambooth_{button}').click()")
        wait(window, lambda: "of 100000" in text_of(window, "#dreambooth_panel"))
        window.execute_script("document.querySelector('#dreambooth_cancel').click()")
        wait(window, lambda: "was cancelled after step" in text_of(window, "#dreambooth_panel"))
    assert finished(with_pack)["training"]["status"] == "cancelled"
