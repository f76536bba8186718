"""The editing seam inside the real WebUI, through the extension `editing_probe`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webui.client import JSON, Generation
from tests.webui.conftest import _serve
from tests.webui.edits import ERROR, edited
from tests.webui.host.test_lifecycle import read_trace
from tests.webui.jobs import BASE, CASES, feedback, generate, with_fabric
from tests.webui.server import PACK_NAME, REPO, Installation, WebUI

pytestmark = pytest.mark.slow
PROBE = Path(__file__).resolve().parents[1] / "editing_probe"
SMALL: JSON = {**BASE, "width": 64, "height": 64, "steps": 4}
HIRES: JSON = {**CASES["Hires.fix"], "width": 64, "height": 64, "steps": 4, "hr_second_pass_steps": 3}
IMG2IMG: JSON = {**CASES["img2img"], "width": 64, "height": 64, "steps": 5}
SECOND_ORDER = ("Heun", "DPM2", "Restart")
DETERMINISTIC = ("Euler", "LMS", "DPM++ 2M", *SECOND_ORDER, "DDIM", "DDIM CFG++", "PLMS", "UniPC")
STOCHASTIC = ("Euler a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE", "DPM2 a", "DPM++ 2S a", "LCM")


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with the pack and the probe, which is loaded after it and finds its `lib_methods`."""
    extensions = {PACK_NAME: REPO, f"{PACK_NAME}-probe": PROBE}
    yield from _serve(installation, tmp_path_factory.mktemp("webui-editing"), extensions)


@pytest.fixture(autouse=True)
def logged(server: WebUI) -> Iterator[list[str]]:
    """The ends of the errors that a test wants in the log; otherwise none may be there."""
    before = len(server.log())
    wanted: list[str] = []
    yield wanted
    found = server.errors(before)
    assert len(found) == len(wanted), found
    assert all(report.endswith(end) for report, end in zip(found, wanted)), found


def told(server: WebUI, payload: JSON, act: str) -> tuple[Generation, dict[str, Any]]:
    """The image, and all that the probe wrote in the last sampling."""
    server.trace_path.unlink(missing_ok=True)
    scripts = {**payload.get("alwayson_scripts", {}), "Editing probe": {"args": [act]}}
    made = generate(server, {**payload, "alwayson_scripts": scripts})
    answers: dict[str, Any] = {}
    for entry in read_trace(server.trace_path):
        answers.update(entry)
    return made, answers


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("case", [SMALL, IMG2IMG, HIRES], ids=["txt2img", "img2img", "Hires.fix"])
def test_own_start_and_levels(server: WebUI, case: JSON, sampler: str) -> None:
    """`sigmas` are those that the denoiser sees; starting from the host's own start gives the same image."""
    payload = {**case, "sampler_name": sampler}
    if sampler == "UniPC" and case is not SMALL:
        payload["steps"] = payload["hr_second_pass_steps"] = 6  # the host wants no fewer than the order
    made, answers = told(server, payload, "look")
    assert made.pixels == generate(server, payload).pixels
    assert not answers["stochastic"]
    assert answers["own"] == (case is not SMALL)
    seen = answers["levels"]
    if sampler in SECOND_ORDER:
        seen = seen[::2]
    elif sampler == "PLMS":
        seen = seen[:1] + seen[2:]
    assert answers["sigmas"][:-1] == pytest.approx(seen, rel=1e-4)


@pytest.mark.parametrize("scheduler", ["Karras", "SGM Uniform", "KL Optimal", "Beta", "DDIM", "Simple"])
def test_every_schedule(server: WebUI, scheduler: str) -> None:
    _, answers = told(server, {**HIRES, "sampler_name": "Euler", "scheduler": scheduler}, "look")
    assert answers["sigmas"][:-1] == pytest.approx(answers["levels"], rel=1e-5)


def test_samplers_that_cannot_be_edited_are_known(server: WebUI) -> None:
    for sampler in STOCHASTIC:
        _, answers = told(server, {**SMALL, "sampler_name": sampler}, "look")
        assert answers["stochastic"], sampler
    for sampler in ("DPM fast", "DPM adaptive"):
        _, answers = told(server, {**SMALL, "sampler_name": sampler}, "look")
        assert f'"{sampler}" chooses its noise levels' in answers["sigmas"]
    _, answers = told(server, {**SMALL, "sampler_name": "Restart", "steps": 20}, "look")
    assert "goes back to higher noise" in answers["sigmas"]
    assert answers["stochastic"]


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "UniPC"])
@pytest.mark.parametrize("case", [SMALL, IMG2IMG], ids=["txt2img", "img2img"])
def test_the_sampler_goes_on_from_what_the_editor_returns(server: WebUI, case: JSON, sampler: str) -> None:
    """Against a plain loop over predictions of the seam, from another start."""
    if sampler == "UniPC":
        server.client.post("/sdapi/v1/options", {"uni_pc_order": 1})
    _, answers = told(server, {**case, "sampler_name": sampler}, "move")
    if sampler == "UniPC":
        server.client.post("/sdapi/v1/options", {"uni_pc_order": 3})
    assert answers["off"] < 1e-3


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_gradients_through_blocks_with_checkpointing(server: WebUI, sampler: str) -> None:
    _, answers = told(server, {**SMALL, "sampler_name": sampler}, "gradient")
    assert answers["gradient"] == pytest.approx(answers["numeric"], rel=0.02)
    assert (
        answers["checkpointing"] > 0 or server.installation.host.guesses
    )  # of ldm's blocks: it was off and is on again
    assert answers["as_before"]
    assert answers["collected"] == 0


def test_an_error_in_the_middle_ends_the_edit_with_a_sentence(server: WebUI, logged: list[str]) -> None:
    """The job continues without it, and later images are as they were."""
    job = {**IMG2IMG, "sampler_name": "Euler"}
    asked = edited(job, source="circle", target="square")
    plain, edit = generate(server, job), generate(server, asked)
    assert ERROR not in edit.infotexts[0]
    logged.append("ValueError: asked to fail")
    broken, answers = told(server, asked, "fail")
    assert answers["failed"]
    assert "An internal error" in broken.infotexts[0].partition(ERROR)[2]
    assert broken.pixels[0] not in (plain.pixels[0], edit.pixels[0])
    assert generate(server, job).pixels == plain.pixels
    assert generate(server, asked).pixels == edit.pixels


def test_fabric_announces_its_memory_to_the_host(server: WebUI) -> None:
    """In both passes of Hires.fix, so that the host makes room; nothing of it is left for the next job."""
    if not server.installation.host.guesses:
        pytest.skip("AUTOMATIC1111's WebUI does not plan its memory")
    for _ in range(2):
        _, asked = told(server, with_fabric(HIRES, likes=feedback("red")), "memory")
        assert all(1 << 20 < asked[half] < 1 << 28 for half in ("first", "second"))
        _, plain = told(server, HIRES, "memory")
        assert plain == {"first": 0, "second": 0}
