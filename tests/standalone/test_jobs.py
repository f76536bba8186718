"""The job queue: one at a time, in order, and alive after whatever a job does."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lib_methods.errors import UserError
from standalone.host.jobs.queue import Job, JobEnded, JobQueue, explain


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue()
    yield queue
    queue.close()


def test_jobs_run_one_at_a_time_in_order(queue: JobQueue) -> None:
    running, most, order = 0, 0, []
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        order.append(number)
        with lock:
            running -= 1
        return number * 2

    jobs = [queue.submit(work, number) for number in range(12)]
    assert [job.result(10) for job in jobs] == [2 * number for number in range(12)]
    assert order == list(range(12))
    assert most == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        UserError("no"),
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        StopIteration(),
    ],
)
def test_the_queue_outlives_errors(queue: JobQueue, error: BaseException) -> None:
    def fail() -> None:
        raise error

    job = queue.submit(fail)
    # what would end the program, or cannot pass through a future, ends the job alone
    passes = isinstance(error, Exception) and not isinstance(error, StopIteration)
    with pytest.raises(type(error) if passes else JobEnded):
        job.result(10)
    assert job.status == "failed"
    assert job.error
    assert queue.run(lambda: 5) == 5


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
            "memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (MemoryError("Unable to allocate 8.00 GiB for an array"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/home/me/x.png"), "The disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/home/me/x.png"), "write permission"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "too long"),
        (OSError(9999, "odd"), "console has the details"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(error: Exception, told: str) -> None:
    sentence = explain(error)
    assert told in sentence
    assert "/home" not in sentence


def test_hooks_frame_every_job() -> None:
    seen: list[str] = []
    queue = JobQueue(
        before=lambda job: seen.append(f"before {job.name}"), after=lambda job: seen.append(f"after {job.status}")
    )
    queue.run(lambda: seen.append("work"), name="a")
    with pytest.raises(ZeroDivisionError):
        queue.run(lambda: 1 / 0, name="b")
    queue.close()
    assert seen == ["before a", "work", "after running", "before b", "after running"]


def test_a_failing_hook_is_the_jobs_failure_not_the_queues() -> None:
    failing = [True]

    def before(job: Job) -> None:
        if failing.pop() if failing else False:
            raise RuntimeError("not ready")

    queue = JobQueue(before=before)
    with pytest.raises(RuntimeError, match="not ready"):
        queue.run(lambda: 1)
    assert queue.run(lambda: 1) == 1
    queue.close()


def test_waiting_jobs_have_a_place_and_can_be_cancelled(queue: JobQueue) -> None:
    gate, started = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        gate.wait(10)

    first = queue.submit(hold, task_id="first")
    second, third = queue.submit(lambda: 2, task_id="second"), queue.submit(lambda: 3, task_id="third")
    started.wait(10)
    assert queue.current is first
    assert [queue.position(job) for job in (first, second, third)] == [0, 1, 2]
    assert queue.find("third") is third
    assert queue.cancel("second")
    assert not queue.cancel("first"), "it runs"
    assert not queue.cancel("nobody")
    assert queue.position(third) == 1
    gate.set()
    assert third.result(10) == 3
    with pytest.raises(UserError, match="cancelled"):
        second.result(1)
    assert queue.find("first") is first
    assert first.done


def test_a_job_may_ask_the_queue(queue: JobQueue) -> None:
    assert queue.run(lambda: queue.run(lambda: 7)) == 7


def test_a_job_that_is_not_ready_says_so(queue: JobQueue) -> None:
    gate = threading.Event()
    job = queue.submit(gate.wait, 10)
    with pytest.raises(TimeoutError):
        job.result(0.01)
    gate.set()
    job.result(10)


def test_a_closed_queue_takes_nothing(queue: JobQueue) -> None:
    queue.close()
    with pytest.raises(UserError, match="shutting down"):
        queue.submit(lambda: 1)


def test_a_finished_job_keeps_nothing_of_its_request(queue: JobQueue) -> None:
    import gc
    import weakref

    class Big:
        pass

    big = Big()
    ref = weakref.ref(big)

    def fail(thing: Big) -> None:
        held = thing
        raise ValueError(str(held is None))

    job = queue.submit(fail, big)
    with pytest.raises(ValueError):
        job.result(10)
    del big
    gc.collect()
    assert ref() is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB at /home/x"), "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: out of memory"), "Out of memory"),
        (UserError("The size 1x1 is not possible."), "1x1"),
        (FileNotFoundError("/home/me/secret/file"), "FileNotFoundError"),
    ],
)
def test_errors_are_explained_in_one_sentence_without_paths(error: Exception, words: str) -> None:
    text = explain(error)
    assert words in text
    assert "\n" not in text
    assert "/home" not in text
