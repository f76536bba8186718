"""FABRIC in the real WebUI when something goes wrong: an interrupt, an image that is none, settings out of range."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.webui.client import JSON, ApiError, Generation
from tests.webui.jobs import BASE, Runs, feedback, generate
from tests.webui.methods.test_fabric import liked
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]


class Job(threading.Thread):
    """One generation in the background."""

    def __init__(self, server: WebUI, payload: JSON) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.payload = payload
        self.result: Generation | None = None

    def run(self) -> None:
        self.result = self.server.client.generate(self.payload)


def wait_for_step(server: WebUI, step: int) -> None:
    """Returns once the running job has reached `step`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = server.client.get("/sdapi/v1/progress?skip_current_image=true")["state"]
        if state["job_count"] > 0 and state["sampling_step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached within a minute")


@pytest.mark.parametrize("verb", ["interrupt", "skip"])
def test_the_host_serves_on_after_a_job_is_stopped(with_pack: WebUI, runs: Runs, verb: str) -> None:
    off, on = runs.first(with_pack, BASE), runs.first(with_pack, liked(BASE))
    before = len(with_pack.log())
    steps = 150
    job = Job(with_pack, {**liked(BASE), "steps": steps, "width": 256, "height": 256})
    job.start()
    wait_for_step(with_pack, 3)
    with_pack.client.post(f"/sdapi/v1/{verb}")
    job.join(60)
    assert job.result is not None, "the stopped job did not end"
    assert generate(with_pack, BASE).pixels == off.pixels
    assert generate(with_pack, liked(BASE)).pixels == on.pixels
    assert with_pack.errors(before) == []


BAD: dict[str, JSON] = {
    "no image": {"likes": [{"image": "AAAA", "weight": 1.0}]},
    "a path": {"likes": [{"image": "../../config.json", "weight": 1.0}]},
    "unknown hash": {"likes": [{"image": "0" * 64, "weight": 1.0}]},
    "negative weight of an image": {"likes": feedback("red", weight=-1.0)},
    "start after end": {"likes": feedback("red"), "start": 0.9, "end": 0.1},
    "strength is text": {"likes": feedback("red"), "strength": "strong"},
    "likes is text": {"likes": "red"},
    "unknown field": {"likes": feedback("red"), "strenght": 0.8},
}


def attempt(server: WebUI, payload: JSON) -> tuple[Generation | None, ApiError | None]:
    """The answer to `payload`, or the refusal."""
    try:
        return server.client.generate(payload), None
    except ApiError as refused:
        return None, refused


@pytest.mark.parametrize("settings", BAD.values(), ids=BAD.keys())
def test_bad_settings_do_no_harm_and_are_named(with_pack: WebUI, runs: Runs, settings: JSON) -> None:
    """Either the job is refused with a sentence, or it runs as without FABRIC and says so; never a traceback."""
    off = runs.first(with_pack, BASE)
    before = len(with_pack.log())
    answer, refused = attempt(with_pack, {**BASE, "alwayson_scripts": {"FABRIC": {"args": [settings]}}})
    said = with_pack.log()[before:]
    if refused is not None:
        assert 400 <= refused.status < 500, refused.body
        assert len(json.loads(refused.body)["detail"].split()) > 3, "not a sentence"
        said += refused.body
        assert str(with_pack.data) not in refused.body
    else:
        assert answer is not None
        assert answer.pixels == off.pixels
        said += answer.infotexts[0]
        assert "FABRIC" in said, "nobody is told"
    assert "Traceback" not in said
    assert generate(with_pack, BASE).pixels == off.pixels
