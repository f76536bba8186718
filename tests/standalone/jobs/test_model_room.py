"""The host's model leaves the device for a training run and comes back; jobs in between get it, or a sentence."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_methods.hosts import training
from lib_methods.hosts.training import HostModelRoom, device_environment

WHY = "DreamBooth: Training is running"
REFUSAL = f"{WHY} and leaves no memory for generating images. Wait until it ends, or cancel it."


@pytest.fixture
def moved(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the host is asked to do with its model."""
    from modules import sd_models

    calls: list[str] = []
    for name in ("send_model_to_cpu", "send_model_to_device"):
        original = getattr(sd_models, name)

        def call(model: Any, name: str = name, original: Any = original) -> None:
            calls.append(name.removeprefix("send_model_to_"))
            original(model)

        monkeypatch.setattr(sd_models, name, call)
    return calls


def test_away_and_back(sd1: Any, moved: list[str]) -> None:
    room = HostModelRoom()
    room.restore()
    assert moved == [], "nothing to bring back"
    before = sd1.generate().images[0].tobytes()
    room.release(WHY)
    room.restore()
    room.restore()
    assert moved == ["cpu", "device"]
    assert sd1.generate().images[0].tobytes() == before


def test_a_fork_unloads_by_its_own_memory_management(moved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the first image, when it has no model yet; it loads one by itself at the next job."""
    unloaded: list[str] = []
    fork = SimpleNamespace(unload_all_models=lambda: unloaded.append("all"))
    monkeypatch.setattr(training, "memory_management", lambda: fork)
    for model in (None, SimpleNamespace()):
        monkeypatch.setattr(training, "current_model", lambda model=model: model)
        room = HostModelRoom()
        room.release(WHY)
        assert room.before_job() == ""
        room.release(WHY)
        room.restore()
    assert unloaded == ["all"] * 4
    assert moved == []


@pytest.mark.parametrize("free", [2**30 - 1, 2**30])
def test_a_fork_needs_memory_for_generating_alone(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    from modules import devices

    monkeypatch.setattr(training, "memory_management", lambda: SimpleNamespace(unload_all_models=lambda: None))
    room = HostModelRoom()
    room.release(WHY)
    monkeypatch.setattr(devices, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 8 * 2**30))
    assert room.before_job() == ("" if free == 2**30 else REFUSAL)


def test_a_job_in_between_gets_the_model_back(sd1: Any, moved: list[str]) -> None:
    room = HostModelRoom()
    assert room.before_job() == ""
    assert moved == []
    room.release(WHY)
    assert sd1.host.queue.run(room.before_job) == ""
    assert sd1.host.queue.run(room.before_job) == ""
    room.restore()
    assert moved == ["cpu", "device"], "back once, for the job"


def test_a_job_is_told_where_there_is_no_memory(sd1: Any, moved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import devices

    room = HostModelRoom()
    room.release(WHY)
    with monkeypatch.context() as small:
        small.setattr(devices, "device", torch.device("cuda"))
        small.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 8 * 2**30))
        assert room.before_job() == REFUSAL
        assert moved == ["cpu"]
        small.setattr(torch.cuda, "mem_get_info", lambda device: (7 * 2**30, 8 * 2**30))
        small.setattr("lib_methods.hosts.training._bring_back", lambda: moved.append("device"))
        assert room.before_job() == ""
    assert moved == ["cpu", "device"]


def test_the_model_is_not_taken_from_under_a_job(sd1: Any, moved: list[str]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(30)
        moved.append("job ends")

    job = sd1.host.queue.submit(work)
    assert begun.wait(30)
    taking = threading.Thread(target=HostModelRoom().release, args=(WHY,))
    taking.start()
    time.sleep(0.2)
    assert moved == []
    go_on.set()
    job.result(30)
    taking.join(30)
    assert moved == ["job ends", "cpu"]


def test_the_queue_lock_lets_no_job_run_and_is_free_within_one(sd1: Any) -> None:
    from modules.call_queue import queue_lock, wrap_queued_call

    done: list[int] = []
    with queue_lock:
        job = sd1.host.queue.submit(lambda: done.append(1))
        time.sleep(0.2)
        assert done == []
    job.result(30)
    assert done == [1]
    assert sd1.host.queue.run(wrap_queued_call(lambda: 5)) == 5


@pytest.mark.parametrize(
    ("chosen", "visible", "told"),
    [(None, "", None), ("1", "", "1"), ("1", "4,7", "7"), ("0", "GPU-abc", "GPU-abc"), ("x", "", None)],
)
def test_a_training_runs_on_the_hosts_gpu(
    sd1: Any, monkeypatch: pytest.MonkeyPatch, chosen: str | None, visible: str, told: str | None
) -> None:
    from modules import shared

    monkeypatch.setattr(shared.cmd_opts, "device_id", chosen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_environment().get("CUDA_VISIBLE_DEVICES") == told
