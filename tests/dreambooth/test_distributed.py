"""Two processes train as one does with the whole batch, stay the same, and only the first of them writes."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.training.processes import Processes, start_processes
from standalone import ROOT

from . import two_processes
from .models import write
from .training import events, settings_for, state_tensors, train

CPU = torch.device("cpu")
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="several processes need the package accelerate"
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(rank: int, port: int) -> dict[str, str]:
    """As a launcher sets it."""
    here = {**on_this_cpu(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return {**here, **ranks}


def on_this_cpu() -> dict[str, str]:
    """The environment of processes that share this machine's CPU and talk over loopback."""
    here = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if sys.platform == "linux":
        here["GLOO_SOCKET_IFNAME"] = "lo"
    return {**os.environ, **here}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run of two processes, and what each found."""
    folder = tmp_path_factory.mktemp("together")
    settings_for(folder, base)  # writes the photos
    port = free_port()
    command = [sys.executable, "-m", "tests.dreambooth.two_processes", "whole", str(folder), str(base)]
    out: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [subprocess.Popen(command, env=environment(rank, port), **out) for rank in range(2)]
    try:
        said = [process.communicate(timeout=240)[0].decode(errors="replace") for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return folder, [json.loads((folder / f"found{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@needs_accelerate
def test_each_knows_who_it_is_and_what_the_others_say(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, found in enumerate(together[1]):
        assert (found["rank"], found["count"], found["is_main"]) == (rank, 2, rank == 0)
        assert found["mean"] == 0.5 and found["any"] == [False, True, True]


@needs_accelerate
@pytest.mark.parametrize(("name", "dtype"), [("adamw", torch.float32), ("adafactor", torch.bfloat16)])
def test_two_processes_move_the_weights_as_one_does(
    together: tuple[Path, list[dict[str, Any]]], name: str, dtype: torch.dtype
) -> None:
    """With clipping, min-SNR and a prior, whose class rows are shared like the photos."""
    first, second = (torch.tensor(found[name]) for found in together[1])
    alone = torch.tensor(two_processes.small_training(Processes(CPU), name, dtype))
    start = torch.cat([p.detach().float().flatten() for p in two_processes.small_model(dtype).parameters()])
    assert torch.equal(first, second)
    assert (alone - start).abs().max() > 5e-3
    # gradients in bfloat16 are rounded in each process
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 8e-3)


@needs_accelerate
def test_an_overflow_in_one_process_leaves_out_the_step_in_both(together: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (torch.tensor(found["overflow"]) for found in together[1])
    assert torch.equal(first, second) and bool(first.isfinite().all())
    assert not torch.equal(first, torch.tensor(together[1][0]["adamw"]))


@needs_accelerate
def test_a_whole_training_in_two_processes_is_that_of_twice_the_batch(
    together: tuple[Path, list[dict[str, Any]]], tmp_path: Path, base: Path
) -> None:
    settings = settings_for(tmp_path, base, prior="images", batch_size=2)
    train(settings)
    pair = settings_for(together[0], base, prior="images", batch_size=1)
    alone, both = state_tensors(settings), state_tensors(pair)
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=2e-5, msg=name)


@needs_accelerate
def test_only_the_first_process_talks_and_writes(together: tuple[Path, list[dict[str, Any]]], base: Path) -> None:
    folder, found = together
    assert found[0]["said"] > 3 and found[1]["said"] == 0
    settings = settings_for(folder, base, prior="images", batch_size=1)
    for name, times in (("start", 1), ("plan", 2), ("done", 1)):  # the plan's time is known after some of the work
        assert len(events(settings, name)) == times
    assert [line["step"] for line in events(settings, "step")] == [1, 2, 3, 4]


def test_alone_nothing_is_needed_and_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = start_processes(CPU)
    weights = nn.Parameter(torch.zeros(2))
    weights.grad = torch.tensor([1.0, 2.0])
    processes.average_gradients([weights])
    assert weights.grad.tolist() == [1.0, 2.0]
    assert processes.is_main and processes.count == 1
    assert processes.mean(0.3) == 0.3 and processes.any(True) and not processes.any(False)
    processes.wait()
    processes.close()


def test_started_by_a_launcher_without_accelerate_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DreamBoothError, match="needs the package accelerate"):
        start_processes(CPU)
