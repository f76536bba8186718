"""Several processes train as one does with the whole batch, each with all weights or with a part of the UNet."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib_methods.dreambooth.model.base import read_base
from lib_methods.dreambooth.training.plan import plan_training
from lib_methods.dreambooth.training.processes import (
    Processes,
    Sharding,
    asked_sharding,
    can_shard,
    gathered,
    local,
    start_processes,
    whole,
)
from lib_methods.errors import UserError
from standalone import ROOT
from standalone.dreambooth import load_training_model
from tests.api.process import free_port
from tests.dreambooth import two_processes
from tests.dreambooth.models import write
from tests.dreambooth.runs import events, settings_for, state_tensors, train, write_photos

CPU = torch.device("cpu")
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="several processes need the package accelerate"
)
needs_sharding = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None or not can_shard(),
    reason="sharding needs the package accelerate and PyTorch 2.6",
)
Together = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), levels=1)  # what is sharded costs time by the number of its weights


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Together:
    """The folder of two processes that `accelerate launch` has started on this CPU, and what each found."""
    folder = tmp_path_factory.mktemp("together")
    for kind in ("full", "LoRA", "whole"):
        write_photos(folder / kind / "photos")
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--use_fsdp", "--fsdp_version", "2"] if can_shard() else ["--multi_gpu"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_ip", "127.0.0.1"]
    program = ["-m", "tests.dreambooth.two_processes", str(folder), str(base), *(str(free_port()) for _ in range(5))]
    command = [sys.executable, *launch, *plain, "--main_process_port", str(free_port()), *program]
    here = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if sys.platform == "linux":
        here["GLOO_SOCKET_IFNAME"] = "lo"
    out: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **here}, **out)
    try:
        said = launcher.communicate(timeout=1200)[0]
    except subprocess.TimeoutExpired:
        launcher.terminate()  # it then ends its processes, too
        said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0, said
    return folder, [json.loads((folder / f"found{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@needs_accelerate
def test_each_knows_who_it_is_and_what_the_others_say(together: Together) -> None:
    for rank, found in enumerate(together[1]):
        assert (found["rank"], found["count"], found["is_main"]) == (rank, 2, rank == 0)
        assert found["mean"] == 0.5 and found["any"] == [False, True, True]


@needs_accelerate
@pytest.mark.parametrize(("name", "dtype"), [("adamw", torch.float32), ("adafactor", torch.bfloat16)])
def test_two_processes_move_the_weights_as_one_does(together: Together, name: str, dtype: torch.dtype) -> None:
    """With clipping, min-SNR and a prior, whose class rows are shared like the photos."""
    first, second = (torch.tensor(found[name]) for found in together[1])
    alone = torch.tensor(two_processes.small_training(Processes(CPU), name, dtype))
    start = torch.cat([p.detach().float().flatten() for p in two_processes.small_model(dtype).parameters()])
    assert torch.equal(first, second)
    assert (alone - start).abs().max() > 5e-3
    # gradients in bfloat16 are rounded in each process
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 8e-3)


@needs_accelerate
def test_an_overflow_in_one_process_leaves_out_the_step_in_both(together: Together) -> None:
    first, second = (torch.tensor(found["overflow"]) for found in together[1])
    assert torch.equal(first, second) and bool(first.isfinite().all())
    assert not torch.equal(first, torch.tensor(together[1][0]["adamw"]))


@needs_accelerate
def test_a_whole_training_in_two_processes_is_that_of_twice_the_batch(
    together: Together, tmp_path: Path, base: Path
) -> None:
    settings = settings_for(tmp_path, base, prior="images", batch_size=2, steps=2)
    train(settings)
    pair = settings_for(together[0] / "whole", base, prior="images", batch_size=1, steps=2)
    alone, both = state_tensors(settings), state_tensors(pair)
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=2e-5, msg=name)


@needs_accelerate
def test_only_the_first_process_talks_and_writes(together: Together, base: Path) -> None:
    folder, found = together
    assert found[0]["said"] > 3 and found[1]["said"] == 0
    settings = settings_for(folder / "whole", base, prior="images", batch_size=1, steps=2)
    for name, times in (("start", 1), ("plan", 2), ("done", 1)):  # the plan's time is known after some of the work
        assert len(events(settings, name)) == times
    assert [line["step"] for line in events(settings, "step")] == [1, 2]


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
    with pytest.raises(UserError, match="needs the package accelerate"):
        start_processes(CPU)


# -- what is asked for


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "false"}, None),
        ({"ACCELERATE_USE_FSDP": "true"}, Sharding("FSDP", frees=True)),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
                "FSDP_RESHARD_AFTER_FORWARD": "true",
            },
            Sharding("FSDP", frees=True),
        ),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "2"}, Sharding("FSDP", frees=False)),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"}, Sharding("FSDP", frees=False)),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, None),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, Sharding("DeepSpeed", frees=False)),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            Sharding("DeepSpeed", frees=True),
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, None),
    ],
)
def test_the_launchers_configuration_says_how(environment: dict[str, str], wanted: Sharding | None) -> None:
    assert asked_sharding(environment) == wanted


def test_deepspeeds_own_file_says_how(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}), encoding="utf-8")
    assert asked_sharding(environment) == Sharding("DeepSpeed", frees=True)
    file.write_text("{}", encoding="utf-8")
    assert asked_sharding(environment) is None
    for broken in ("no JSON", '{"zero_optimization": {"stage": "auto"}}', "[]"):
        file.write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match="configuration for DeepSpeed cannot be read"):
            asked_sharding(environment)


def test_what_is_not_sharded_passes_as_it_is() -> None:
    weights = torch.nn.Parameter(torch.arange(3.0))
    assert local(weights) is weights and whole(weights) is weights
    assert gathered(weights).data_ptr() == weights.data_ptr()


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.fsdp as fsdp

    monkeypatch.delattr(fsdp, "fully_shard", raising=False)
    assert not can_shard()


# -- the plan


def test_the_plan_counts_a_part_of_the_unet(base: Path, tmp_path: Path) -> None:
    sizes = read_base(base).sizes
    settings = settings_for(tmp_path, base, kind="full")
    cpu = torch.device("cpu")
    alone = plan_training(settings, sizes, cpu, processes=2)
    parts = plan_training(settings, sizes, cpu, processes=2, sharded=True)
    assert parts.optimizer == "adamw" and not parts.fused_backward
    assert alone.optimizer == "adamw"
    assert parts.memory["optimizer"] == pytest.approx(alone.memory["optimizer"] / 2, rel=0.01)
    assert parts.memory["gradients"] == pytest.approx(alone.memory["gradients"] / 2, rel=0.01)
    assert alone.memory["weights"] / 2 < parts.memory["weights"] < alone.memory["weights"]
    with pytest.raises(UserError, match="the optimizer is AdamW"):
        plan_training(settings_for(tmp_path, base, optimizer="adafactor"), sizes, cpu, processes=2, sharded=True)


# -- two processes


@needs_sharding
def test_sharded_steps_are_those_of_one_process(together: Together) -> None:
    """With clipping over both kinds of weights, an average, and a new start in the middle."""
    alone = two_processes.plainly()
    for found in together[1]:
        for name in ("weights", "average"):
            torch.testing.assert_close(
                torch.tensor(found["sharded"][name]), torch.tensor(alone[name]), rtol=0, atol=1e-5, msg=name
            )
        assert found["sharded"]["parts"] == [[4, 4, 3, 3], [4], [2, 8, 3, 3], [2], [4, 1, 1]]
        assert any("sharded over 2 processes" in note for note in found["notes"])
    main, other = (found["sharded"]["kept"] for found in together[1])
    assert main[0] == len(alone["weights"]) and other == [4, 8, 4], "the other keeps only what is not sharded"


@needs_sharding
def test_an_overflow_in_one_leaves_out_the_sharded_step_in_both(
    together: Together,
) -> None:
    first, second = (torch.tensor(found["sharded overflow"]["weights"]) for found in together[1])
    assert torch.equal(first, second) and bool(first.isfinite().all())
    assert not torch.equal(first, torch.tensor(together[1][0]["sharded"]["weights"]))


@needs_sharding
@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_a_sharded_training_is_that_of_twice_the_batch(
    together: Together, tmp_path: Path, base: Path, kind: str
) -> None:
    """The full one was stopped after one step and resumed; the LoRA's best weights are those of the first.
    Weights, optimizer, average and the file.

    AdamW moves a weight without a gradient to speak of by the gradient's noise: so moves are compared as a whole.
    """
    settings = two_processes.sharded_settings(tmp_path, base, kind, batch_size=2)
    pair = two_processes.sharded_settings(together[0] / kind, base, kind)
    assert all(found["stopped"] for found in together[1])
    train(settings, find_judge=two_processes.first_is_best)
    alone, both = state_tensors(settings), state_tensors(pair)
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        if name.startswith("optimizer/"):
            torch.testing.assert_close(both[name], value, rtol=1e-3, atol=2e-5, msg=name)
    one, other = (load_file(str(s.out / f"{s.name}.safetensors")) for s in (settings, pair))
    before = load_file(str(base)) if kind == "full" else {}
    assert one.keys() == other.keys()
    moved = distance(only(one, "up" * (kind == "LoRA")), before)  # a LoRA's other half is random from the start
    assert distance(one, other) < 0.01 * moved
    for part in ("weights/", "average/"):
        assert only(alone, part) and distance(only(alone, part), only(both, part)) < 0.01 * moved


def only(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if part in name}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The norm of all differences; what is missing in `other` counts as zero."""
    parts = [(value - other.get(name, torch.zeros(()))).double().norm() for name, value in one.items()]
    return float(torch.stack(parts).norm())


@needs_sharding
@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_all_generate_and_only_the_first_writes(together: Together, base: Path, kind: str) -> None:
    settings = two_processes.sharded_settings(together[0] / kind, base, kind)
    folder = settings.out / settings.name
    assert [line["step"] for line in events(settings, "step")] == [1, 2]
    assert [line["step"] for line in events(settings, "sample")] == [1, 2]
    assert len(events(settings, "done")) == 1 and not events(settings, "warning")
    looks = [line["best"] for line in events(settings, "score")]
    assert looks == ([True, False] if kind == "LoRA" else [])
    assert events(settings, "done")[0]["best_step"] == (1 if kind == "LoRA" else None)
    assert (settings.out / f"{settings.name}.preview.png").is_file()
    assert [file.name for file in (folder / "saved").glob("*.safetensors")] == [f"{settings.name}-000001.safetensors"]


@needs_sharding
def test_a_training_that_was_sharded_has_a_whole_state(together: Together, base: Path) -> None:
    settings = two_processes.sharded_settings(together[0] / "full", base, "full")
    model = load_training_model(base)
    weights = {f"unet.{name}": tuple(p.shape) for name, p in model.unet.named_parameters()}
    saved = state_tensors(settings)
    for name, shape in weights.items():
        assert tuple(saved[f"weights/{name}"].shape) == shape
