"""One request gives one image, whatever ran before; the queue runs one job at a time and survives them all."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lib_methods.errors import UserError
from standalone.host.jobs.queue import Job, JobEnded, JobQueue, explain
from tests.standalone.pictures import SAMPLERS, pixels

# a batch sums the same numbers in another order than single images do: equal up to rounding
ROUNDING = 1e-5


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= ROUNDING * a.abs().max().clamp(min=1))


# -- the same request, the same image


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sd1: Any, sampler: str) -> None:
    override = {"eta_ddim": 0.5}
    batch = sd1.latents(sampler_name=sampler, seed=5, batch_size=3, override_settings=override)
    for index in range(3):
        single = sd1.latents(sampler_name=sampler, seed=5 + index, override_settings=override)
        assert close(batch[index : index + 1], single)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_global_generator_has_no_part(sd1: Any, sampler: str) -> None:
    torch.manual_seed(1)
    first = sd1.latents(sampler_name=sampler, subseed=3)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(sd1.latents(sampler_name=sampler, subseed=3), first)


def test_batches_and_batch_size_give_the_same_images(sd1: Any) -> None:
    one = sd1.generate(batch_size=4)
    other = sd1.generate(batch_size=2, n_iter=2)
    assert one.all_seeds == other.all_seeds == [1, 2, 3, 4]
    for a, b in zip(one.images, other.images):
        assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_variation_seeds_move_the_noise(sd1: Any) -> None:
    def start(**fields: Any) -> torch.Tensor:
        from modules import rng

        return rng.ImageRNG((4, 8, 8), [1, 1], **fields).next()

    plain, other = start(), start(subseeds=[9, 9], subseed_strength=1.0)
    assert torch.equal(start(subseeds=[9, 9], subseed_strength=0.0), plain)
    between = start(subseeds=[9, 9], subseed_strength=0.3)
    assert (between - plain).norm() < (between - other).norm()
    assert 0.9 < float(between.std()) < 1.1
    result = sd1.generate(subseed=9, subseed_strength=0.3, batch_size=2)
    assert result.all_seeds == [1, 1]
    assert result.all_subseeds == [9, 10]
    assert "Variation seed: 9, Variation seed strength: 0.3" in result.infotexts[0]


def test_seed_resize_keeps_the_middle_of_the_noise(sd1: Any) -> None:
    from modules import rng

    small = rng.ImageRNG((4, 8, 8), [3]).next()
    large = rng.ImageRNG((4, 12, 10), [3], seed_resize_from_h=64, seed_resize_from_w=64).next()
    assert torch.equal(large[:, :, 2:10, 1:9], small)
    cut = rng.ImageRNG((4, 6, 8), [3], seed_resize_from_h=64, seed_resize_from_w=64).next()
    assert torch.equal(cut, small[:, :, 1:7, :])


# -- prompts that change the image


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red:1.9) circle",
        "a red square",
        "a [red:blue:0.5] circle",
        "a [red|blue] circle",
        "a red circle AND a square",
        "a red circle :0.3",
        "a red BREAK circle",
    ],
)
def test_prompts_matter(sd1: Any, prompt: str) -> None:
    assert not torch.allclose(sd1.latents(prompt=prompt), sd1.latents(prompt="a red circle"), atol=1e-6)


def test_clip_skip_matters_and_is_written_down(sd1: Any) -> None:
    override = {"CLIP_stop_at_last_layers": 2}
    assert not torch.equal(sd1.latents(override_settings=override), sd1.latents())
    assert "Clip skip: 2" in sd1.generate(override_settings=override).info


def test_lists_of_prompts_and_seeds(sd1: Any) -> None:
    result = sd1.generate(prompt=["a", "b"], negative_prompt="x", seed=[5, 9], batch_size=2)
    assert result.all_prompts == ["a", "b"]
    assert result.all_seeds == [5, 9]
    assert torch.allclose(
        sd1.latents(prompt=["a", "b"], seed=[5, 9], batch_size=2)[1:], sd1.latents(prompt="b", seed=9), atol=1e-4
    )


def test_nv_is_the_noise_of_an_nvidia_gpu(sd1: Any) -> None:
    from modules import shared
    from standalone.host.sampling import rng

    # Random123's known answer for the counter and the key 0
    words = rng.philox4x32(np.zeros((4, 1), dtype=np.uint32), (0, 0))[:, 0]
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    # torch.manual_seed(0); torch.randn(3, 4, device="cuda")
    expected = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284]
    shared.opts.randn_source = "NV"
    assert torch.allclose(rng.randn(0, (3, 4)).flatten()[:8], torch.tensor(expected), atol=1e-4)
    nv = {"randn_source": "NV"}
    shared.opts.randn_source = "CPU"
    assert not torch.equal(sd1.latents(override_settings=nv), sd1.latents())
    assert torch.equal(sd1.latents(override_settings=nv), sd1.latents(override_settings=nv))
    assert "RNG: NV" in sd1.generate(override_settings=nv).info


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


def test_a_job_that_outlasts_the_close_is_known(queue: JobQueue) -> None:
    gate, started = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        gate.wait()

    job = queue.submit(hold)
    started.wait()
    queue.close(timeout=0)
    assert not queue.has_ended
    gate.set()
    job.result(60)
    queue.close()
    assert queue.has_ended


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
