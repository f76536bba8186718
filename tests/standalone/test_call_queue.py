"""The queue as scripts see it: no job beside who holds it, also through errors, jobs of jobs and shutdown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.standalone.conftest import Running


@pytest.fixture
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[])


def test_no_job_runs_while_the_lock_is_held(host: Running) -> None:
    from modules.call_queue import queue_lock

    seen: list[str] = []
    with queue_lock, queue_lock:  # twice by the same is once
        job = host.host.queue.submit(lambda: seen.append("job"))
        with pytest.raises(TimeoutError):
            job.result(0.2)
        seen.append("held")
    job.result(5)
    assert seen == ["held", "job"]


def test_who_asks_waits_for_the_running_job_and_gives_the_queue_back_after_an_error(host: Running) -> None:
    from modules.call_queue import wrap_queued_call

    started, may_end = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow() -> None:
        started.set()
        may_end.wait(5)
        seen.append("job")

    def fail(word: str) -> None:
        seen.append(word)
        raise ValueError(word)

    host.host.queue.submit(slow)
    started.wait(5)
    threading.Timer(0.1, may_end.set).start()
    with pytest.raises(ValueError, match="mine"):
        wrap_queued_call(fail)("mine")
    assert seen == ["job", "mine"]
    assert host.host.queue.run(lambda: 3) == 3


def test_a_job_may_ask_for_its_own_queue(host: Running) -> None:
    from modules.call_queue import wrap_queued_call

    assert host.host.queue.run(wrap_queued_call(lambda: 5)) == 5


def test_a_queue_that_closes_is_an_error(host: Running) -> None:
    from modules.call_queue import queue_lock

    host.host.queue.close()
    with pytest.raises(Exception, match="shutting down"), queue_lock:
        pass
    host.host.close()
