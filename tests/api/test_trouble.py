"""The server outlives errors, interrupts and lack of memory, and does one job after the other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lib_methods.errors import UserError
from tests.api.conftest import SMALL, Server

WAITING = {"Probe": {"args": ["slow", 1, "", 300]}}  # until it is interrupted


def wait_until(condition: Any, seconds: float = 120.0) -> None:
    """Waits until `condition()` holds, and fails if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def start(server: Server, pool: ThreadPoolExecutor, **fields: Any) -> Any:
    """Starts a job that waits, and returns once it runs or is queued."""
    return pool.submit(server.post, "/sdapi/v1/txt2img", **{**SMALL, **fields})


@pytest.mark.parametrize(
    ("trouble", "told"),
    [("error", "console has the details"), ("memory", "Out of memory"), ("disk", "disk is full")],
)
def test_a_failed_job_is_told_and_the_next_one_works(server: Server, trouble: str, told: str):
    answer = server.post("/sdapi/v1/txt2img", **SMALL, alwayson_scripts={"Probe": {"args": ["x", 1, trouble]}})
    assert answer.status_code == 500
    assert told in answer.json()["detail"]
    assert "secret" not in answer.text
    assert "passwd" not in answer.text
    assert server.txt2img()["images"]
    assert server.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_a_disk_that_is_full_loses_no_image(server: Server, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/x.png")

    monkeypatch.setattr("standalone.host.images._next_number", full)
    answer = server.txt2img(save_images=True)
    assert answer["images"]
    assert "The disk is full." in json.loads(answer["info"])["comments"]
    assert "secret" not in str(answer)


def test_an_interrupted_job_ends_soon_and_the_next_one_works(server: Server):
    with ThreadPoolExecutor(1) as pool:
        job = start(server, pool, steps=1000, alwayson_scripts=WAITING)
        wait_until(lambda: server.get("/sdapi/v1/progress").json()["state"]["job_count"] > 0)
        began = time.monotonic()
        assert server.post("/sdapi/v1/interrupt").json() == {}
        assert job.result(timeout=120).status_code == 200
        assert time.monotonic() - began < 60
    assert server.txt2img()["images"]


def test_skip_answers_as_the_webui_does(server: Server):
    answer = server.post("/sdapi/v1/skip")
    assert (answer.status_code, answer.json()) == (200, None)
    assert server.txt2img()["images"]


def test_jobs_wait_for_each_other_and_quick_requests_do_not(server: Server):
    with ThreadPoolExecutor(3) as pool:
        slow = start(server, pool, alwayson_scripts=WAITING)
        wait_until(lambda: server.host.queue.current is not None)
        others = [start(server, pool, seed=seed) for seed in (10, 11)]
        wait_until(lambda: len(server.host.queue.pending) == 2)
        assert server.get("/sdapi/v1/samplers").status_code == 200
        assert server.get("/sdapi/v1/progress").json()["state"]["job"] == "scripts_txt2img"
        assert not slow.done()
        server.post("/sdapi/v1/interrupt")
        assert [job.result(timeout=120).status_code for job in (slow, *others)] == [200, 200, 200]


def test_the_page_stops_only_its_own_job(server: Server):
    with ThreadPoolExecutor(2) as pool:
        running = start(server, pool, force_task_id="task(one)", alwayson_scripts=WAITING)
        wait_until(lambda: server.host.queue.current is not None)
        waiting = start(server, pool, force_task_id="task(two)")
        wait_until(lambda: len(server.host.queue.pending) == 1)
        progress = server.post("/internal/progress", id_task="task(two)").json()
        assert (progress["active"], progress["queued"]) == (False, True)
        assert server.post("/internal/progress", id_task="task(one)").json()["active"]
        server.post("/internal/interrupt", id_task="task(two)")
        answer = waiting.result(timeout=120)
        assert answer.status_code == 422
        assert "cancelled" in answer.json()["detail"]
        assert not running.done()
        server.post("/internal/interrupt", id_task="task(one)")
        assert running.result(timeout=120).status_code == 200
    assert server.post("/internal/progress", id_task="task(one)").json()["completed"]


def test_a_task_id_is_used_once_at_a_time(server: Server):
    with ThreadPoolExecutor(1) as pool:
        running = start(server, pool, force_task_id="task(same)", alwayson_scripts=WAITING)
        wait_until(lambda: server.host.queue.current is not None)
        second = server.post("/sdapi/v1/txt2img", **SMALL, force_task_id="task(same)")
        server.post("/sdapi/v1/interrupt")
        assert running.result(timeout=120).status_code == 200
    assert second.status_code == 409


def test_progress_counts_and_shows_a_preview(server: Server):
    seen: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as pool:
        job = start(server, pool, steps=60, width=128, height=128)
        while not job.done():
            seen.append(server.get("/sdapi/v1/progress").json())
            time.sleep(0.02)
        assert job.result().status_code == 200
    shares = [item["progress"] for item in seen if item["state"]["job_count"] > 0]
    assert shares == sorted(shares)
    assert 0 < max(shares) <= 1
    assert any(item["current_image"] for item in seen)
    assert set(seen[0]) == {"progress", "eta_relative", "state", "current_image", "textinfo", "current_task"}


@pytest.mark.parametrize(("wanted", "waits"), [(False, False), (True, False), (True, True)])
def test_a_job_whose_client_has_gone_ends_where_the_settings_want_that(server: Server, wanted: bool, waits: bool):
    from modules import shared
    from standalone.api.routes import in_turn

    queue = server.host.queue
    release = threading.Event()
    ended: list[bool] = []

    async def is_gone() -> bool:
        return True

    def work() -> None:
        while not release.wait(0.01) and not shared.state.interrupted:
            pass
        ended.append(shared.state.interrupted)

    async def ask() -> None:
        with contextlib.suppress(UserError):
            await in_turn(queue, work, "job", is_gone=is_gone)

    first = queue.submit(release.wait, name="other") if waits else None
    shared.opts.cancel_jobs_without_client = wanted
    if not wanted:
        threading.Timer(1.5, release.set).start()  # the client is looked for once a second
    try:
        asyncio.run(asyncio.wait_for(ask(), 120))
    finally:
        release.set()
        shared.opts.cancel_jobs_without_client = False
        if first is not None:
            first.result(120)
    assert ended == ([] if waits else [True]) if wanted else ended == [False]


def test_progress_says_whose_job_it_is(server: Server):
    with ThreadPoolExecutor(1) as pool:
        running = start(server, pool, force_task_id="task(mine)", alwayson_scripts=WAITING)
        wait_until(lambda: server.host.queue.current is not None)
        assert server.get("/sdapi/v1/progress").json()["current_task"] == "task(mine)"
        server.post("/internal/interrupt", id_task="task(mine)")
        assert running.result(timeout=120).status_code == 200
    assert server.get("/sdapi/v1/progress").json()["current_task"] is None


@pytest.mark.parametrize("trouble", ["interrupt", "exit", "cancelled"])
def test_nothing_that_a_job_raises_reaches_the_server(server: Server, trouble: str):
    answer = server.post("/sdapi/v1/txt2img", **SMALL, alwayson_scripts={"Probe": {"args": ["x", 1, trouble]}})
    assert answer.status_code == 500
    assert "tried to end the program" in answer.json()["detail"]
    assert server.txt2img()["images"]


def test_many_clients_at_once_all_get_their_own_image(server: Server):
    barrier = threading.Barrier(6)

    def ask(seed: int) -> int:
        barrier.wait()
        import json

        return int(json.loads(server.txt2img(seed=seed)["info"])["seed"])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(100, 106))) == list(range(100, 106))
