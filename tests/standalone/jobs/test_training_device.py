"""What the plan counts with: the training's device, what it will find free there, and whether the host is at rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_methods.hosts import training

GIB = 2**30


@pytest.fixture
def gpus(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two GPUs of 8 GiB; the host computes on the second and holds 3 GiB there, others 1."""
    from modules import devices, shared

    answers: dict[str, Any] = {"free": 4 * GIB, "reserved": 3 * GIB, "asked": 0}

    def free(device: torch.device) -> tuple[int, int]:
        answers["asked"] += 1
        return answers["free"], 8 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: answers["reserved"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * GIB))
    monkeypatch.setattr(devices, "device", torch.device("cuda", 1))
    monkeypatch.setattr(shared.cmd_opts, "device_id", None)
    return answers


def test_without_a_gpu_it_is_the_cpu_and_nobody_knows_the_memory(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.device() == torch.device("cpu")
    assert training.memory(torch.device("cpu"), False) is None
    assert training.may_compute(torch.device("cpu"))


def test_the_hosts_model_will_have_left(gpus: dict[str, Any]) -> None:
    device = training.device()
    assert device == torch.device("cuda", 1)
    assert training.memory(device, False) == 7 * GIB


def test_a_training_that_runs_will_have_ended(gpus: dict[str, Any]) -> None:
    gpus["free"] = GIB
    assert training.memory(training.device(), True) == 8 * GIB


def test_a_gpu_that_the_host_does_not_use_is_left_alone(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import devices, shared

    gpus["reserved"] = 0
    monkeypatch.setattr(devices, "device", torch.device("cpu"))
    for chosen, index in ((None, 0), ("1", 1), ("9", 0), ("x", 0)):
        monkeypatch.setattr(shared.cmd_opts, "device_id", chosen)
        assert training.device() == torch.device("cuda", index)
    assert training.memory(training.device(), False) == 8 * GIB
    assert not training.may_compute(training.device())
    assert gpus["asked"] == 0


def test_nothing_is_measured_while_the_host_draws(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import shared

    device = training.device()
    assert training.may_compute(device)
    shared.state.begin("a picture")
    try:
        assert not training.may_compute(device)
    finally:
        shared.state.end()
    assert training.may_compute(device)
