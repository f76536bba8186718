"""`bench dreambooth` compares two loops that do what it says, and its figures mean what their names say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import bench_dreambooth as program
from benchmarks import dreambooth_loops as loops

CPU = torch.device("cpu")


def passes(module: nn.Module) -> list[int]:
    """Grows by one each time the module's first layer is run."""
    seen: list[int] = []
    first = next(m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Embedding)))
    first.register_forward_hook(lambda *_: seen.append(1))
    return seen


def moved(stage: loops.Stage, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(before[name], value) for name, value in stage.unet.state_dict().items())


def test_the_plain_loop_encodes_at_each_step_and_keeps_fp32_weights() -> None:
    stage = loops.Stage(CPU, quick=True)
    pictures, texts, unet = passes(stage.vae.encoder), passes(stage.encoders[0]), passes(stage.unet)
    before = {name: value.clone() for name, value in stage.unet.state_dict().items()}
    step = loops.plain(stage, "bf16")
    for _ in range(2):
        step()
    assert len(pictures) == len(texts) == len(unet) == 2
    assert moved(stage, before) and {p.dtype for p in stage.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_our_loop_encodes_beforehand_and_trains_as_sd15_would_be_trained_in_8_gib(tmp_path: Path, kind: str) -> None:
    stage, found = loops.Stage(CPU, quick=True), dict[str, Any]()
    pictures = passes(stage.vae.encoder)
    before = {name: value.clone() for name, value in stage.unet.state_dict().items()}
    step = loops.ours(stage, "bf16", kind, tmp_path, found)
    encoded, texts, unet = len(pictures), passes(stage.encoders[0]), passes(stage.unet)
    for _ in range(2):
        step()
    assert encoded == len(pictures) == 8 and len(unet) == 2
    assert len(texts) == 1  # in the first step, for all of them
    assert found["plan"]["weights"] == "bf16" and found["counted"] < 8 * 2**30
    if kind == "full":
        assert found["plan"]["fused_backward"] and found["plan"]["optimizer"] == "adafactor"
        assert {p.dtype for p in stage.unet.parameters()} == {torch.bfloat16}
        after = {name: value.float() for name, value in stage.unet.state_dict().items()}
        assert any(not torch.equal(before[name].bfloat16().float(), after[name]) for name in before)


@pytest.mark.parametrize("loop", loops.LOOPS)
def test_a_loop_reports_seconds_and_memory(loop: str) -> None:
    found = loops.measure(loop, quick=True)
    assert len(found["seconds"]) >= 2 and all(0 < second < 60 for second in found["seconds"])
    assert found["peak"] is None or found["peak"] > 2**20
    json.dumps(found)


def run_of(seconds: list[float], peak: int, **more: Any) -> list[dict[str, Any]]:
    return [{"seconds": seconds, "peak": peak, **more}]


def test_the_figures_are_ratios_to_the_plain_loop() -> None:
    runs = {
        "plain": run_of([3.0, 3.0], 12 * 2**30),
        "full": run_of([1.5, 1.0, 1.5], 4 * 2**30, seconds_a_picture=1.5, counted=3 * 2**30),
        "lora": run_of([1.0], 3 * 2**30, seconds_a_picture=1.0, counted=3 * 2**30),
    }
    found = program.figures(runs)
    assert found["speedup"] == 2 and found["speedup_lora"] == 3
    assert found["memory_ratio"] == pytest.approx(1 / 3) and found["memory_ratio_lora"] == 0.25
    assert found["speedup_whole"] == pytest.approx(800 * 3 / (800 * 1.5 + 104 * 1.5))
    assert found["steps_per_second_full"] == pytest.approx(1 / 1.5) and found["peak_gib_plain"] == 12
    assert all(math.isfinite(value) for value in found.values())


def test_the_processes_own_seconds_are_compared_where_they_are_known() -> None:
    runs = {"plain": run_of([4.0], 1, cpu_seconds=[3.0]), "lora": run_of([1.0], 1, seconds_a_picture=1.0)}
    assert program.figures(runs)["cpu_seconds_a_step_plain"] == 3
    assert "speedup_of_cpu_seconds_lora" not in program.figures(runs)
    runs["full"] = run_of([2.0], 1, seconds_a_picture=1.0, cpu_seconds=[1.0, 2.0, 3.0])
    assert program.figures(runs)["speedup_of_cpu_seconds"] == 1.5 and program.figures(runs)["speedup"] == 2


def test_a_loop_that_has_not_run_yet_and_memory_that_is_not_known_are_left_out() -> None:
    found = program.figures({"plain": run_of([3.0], 1), "full": [], "lora": []})
    assert "speedup" not in found and "steps_per_second_plain" in found
    unknown: list[dict[str, Any]] = [{"seconds": [1.0], "peak": None, "seconds_a_picture": 1.0}]
    found = program.figures({"plain": [{"seconds": [2.0], "peak": None}], "full": unknown, "lora": []})
    assert found["speedup"] == 2 and "memory_ratio" not in found


def test_a_loop_that_fails_ends_the_bench_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(loop: str, out: Path, quick: bool) -> dict[str, Any] | None:
        asked.append(loop)
        return {"seconds": [1.0], "peak": 5, "half": "fp32"} if loop == "plain" else None

    monkeypatch.setattr(program, "run", run)
    assert program.main(tmp_path, True) == 1
    assert asked == ["plain", "full"] and "'full' failed" in capsys.readouterr().err
    assert "steps_per_second_plain" in json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["metrics"]
