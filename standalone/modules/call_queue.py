"""The host's queue of jobs as the WebUI offers it to scripts: whoever needs the model waits for his turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any


class QueueLock:
    """Holds the queue: while somebody is inside, no job runs, and who enters waits for the one that does.

    Within a job nothing happens, as the queue is the job's.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def __enter__(self) -> QueueLock:
        from standalone.host import running

        entered: list[tuple[threading.Event, Any] | None] = self._mine.__dict__.setdefault("entered", [])
        host = running()
        if host is None or host.queue.is_here or any(entered):
            entered.append(None)
            return self
        is_in, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            is_in.set()
            may_go.wait()

        job = host.queue.submit(hold, name="script")
        while not is_in.wait(0.05):
            if job.done:
                raise job.exception or RuntimeError("The queue was closed.")
        entered.append((may_go, job))
        return self

    def __exit__(self, *error: object) -> None:
        held = self._mine.entered.pop()
        if held is not None:
            may_go, job = held
            may_go.set()
            job.result()


queue_lock = QueueLock()


def wrap_queued_call(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func`, run while it holds `queue_lock`."""

    @wraps(func)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        with queue_lock:
            return func(*args, **kwargs)

    return in_turn
