"""The plan fits into the memory, keeps to what was asked for, and says what would fit where nothing does; its rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lib_methods.checkpoints.layout import clip_shapes, unet_shapes
from lib_methods.device import DTYPES, GIB, LiveBytes
from lib_methods.dreambooth.model.base import ModelSizes
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training import plan as planning
from lib_methods.dreambooth.training.optimizers import Group, build_optimizer
from lib_methods.dreambooth.training.plan import TrainingPlan, Way, estimate, generation, plan_training
from lib_methods.dreambooth.training.trainer import rate_scale
from lib_methods.errors import UserError
from tests.dreambooth import count_memory

CUDA = torch.device("cuda")


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(Path("photos"), Path("base"), Path("out"), "name", "dog", **changes)


def sizes_of(family: str) -> ModelSizes:
    """A full-size UNet, and one layer of CLIP-L's text encoder."""
    text = clip_shapes(vocab=49408, positions=77, hidden=768, intermediate=3072, layers=1)
    side = 1024 if family == "sdxl" else 512
    return ModelSizes.of(family, unet_shapes(count_memory.GEOMETRY[family]), [text], side)


@pytest.fixture(scope="module")
def sd1() -> ModelSizes:
    return sizes_of("sd1")


@pytest.fixture(autouse=True)
def _a_gpu_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "has_8bit", lambda: False)
    monkeypatch.setattr(planning, "half_precision", lambda device: "bf16")


@pytest.fixture(params=["bf16", "fp16"])
def _half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "half_precision", lambda device: request.param)


def total(found: TrainingPlan) -> int:
    return sum(found.memory.values())


def plan(sizes: ModelSizes, gib: float, processes: int = 1, **changes: Any) -> TrainingPlan:
    return plan_training(settings(**changes), sizes, CUDA, int(gib * GIB), processes)


def test_the_sizes_are_the_modules(sd1: ModelSizes) -> None:
    assert sd1.unet == 859_520_964  # as published
    assert sd1.largest == 2560 * 1280 * 3 * 3
    assert sd1.factored < sd1.unet / 200
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # of the 16 transformers
    # to q, k, v and out twice, where the second k and v come from the text; into the gated feed-forward and out again
    attention = sum(6 * 2 * w + 2 * (768 + w) + (w + 8 * w) + (4 * w + w) for w in widths)
    assert sd1.lora == attention + sum(2 * 2 * w for w in widths)  # and one layer before and behind
    assert sd1.text_width == 768


def test_adafactors_state_is_what_was_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Linear(4, 4))
    stepper = build_optimizer([Group(list(model.parameters()), 1e-3)], "adafactor")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepper.step()
    kept = sum(v.numel() for k, v in stepper.state_dict().items() if k.endswith(("row", "column", "square")))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert ModelSizes.of("sd1", shapes, [], 64).factored == kept


def test_sd15_trains_in_full_within_8_gib_and_as_a_lora_within_5(sd1: ModelSizes) -> None:
    full = plan(sd1, 8, kind="full")
    assert total(full) < 8 * GIB and full.batch_size == 1
    lora = plan(sd1, 5)
    assert total(lora) < 5 * GIB and lora.weights == "bf16" and not lora.fused_backward
    assert total(plan(sd1, 5, kind="full")) < 5 * GIB


@pytest.mark.usefixtures("_half")
@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_what_is_planned_fits_and_more_memory_never_makes_it_slower(sd1: ModelSizes, kind: str) -> None:
    costs: list[tuple[int, float]] = []
    for gib in (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 48):
        try:
            found = plan(sd1, gib, kind=kind, batch_size=2)
        except UserError:
            assert not costs
            continue
        assert total(found) <= gib * GIB
        assert found.batch_size * found.accumulation == 2 or found.fused_backward
        costs.append((2 - found.batch_size, planning._cost(found)))
        assert any("GiB" in note for note in found.notes)
    assert len(costs) > 3 and costs == sorted(costs, reverse=True)


def test_plenty_of_memory_means_plain_fp32_weights_and_adamw(sd1: ModelSizes) -> None:
    found = plan(sd1, 48, kind="full")
    assert (found.weights, found.precision, found.optimizer) == ("fp32", "bf16", "adamw")
    assert not found.fused_backward and not found.checkpointing
    assert found.autocast == torch.bfloat16 and DTYPES[found.weights] == torch.float32
    little = plan(sd1, 6, kind="full")
    assert little.autocast is None and DTYPES[little.weights] == torch.bfloat16 and little.fused_backward


def test_8bit_adamw_comes_between(sd1: ModelSizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "has_8bit", lambda: True)
    assert plan(sd1, 10, kind="full").optimizer == "adamw8bit"
    assert plan(sd1, 48, kind="full").optimizer == "adamw"
    assert plan(sd1, 4, kind="full").optimizer == "adafactor"


def test_what_was_asked_for_is_kept_to(sd1: ModelSizes) -> None:
    assert plan(sd1, 48, kind="full", optimizer="adafactor", fused_backward=True).fused_backward
    assert plan(sd1, 48, kind="full", checkpointing=True).checkpointing
    assert plan(sd1, 48, kind="full", precision="fp32").autocast is None
    assert plan(sd1, 48, precision="fp16").precision == "fp16"
    assert plan(sd1, 48, kind="full", optimizer="adafactor").optimizer == "adafactor"


def test_a_batch_that_does_not_fit_is_gathered_and_a_fused_one_lowered(sd1: ModelSizes) -> None:
    found = plan(sd1, 5, batch_size=64)
    assert found.batch_size * found.accumulation == 64 and found.accumulation > 1
    assert any("accumulated over" in note for note in found.notes)
    fused = plan(sd1, 4, kind="full", batch_size=64)
    assert fused.accumulation == 1 and 1 <= fused.batch_size < 64
    assert any("lowered from 64" in note for note in fused.notes)
    assert plan(sd1, 48, accumulation=3, batch_size=2).accumulation == 3


def test_with_several_processes_nothing_is_fused(sd1: ModelSizes) -> None:
    assert not plan(sd1, 48, kind="full", processes=2).fused_backward
    with pytest.raises(UserError, match="one GPU only"):
        plan(sd1, 48, kind="full", processes=2, fused_backward=True)


def test_where_nothing_fits_it_says_what_would(sd1: ModelSizes) -> None:
    with pytest.raises(UserError, match=r"2\.8 GiB are not enough: full training takes .* A LoRA would fit"):
        plan(sd1, 2.76, kind="full")
    with pytest.raises(UserError, match="smaller base model"):
        plan(sd1, 1)
    larger = replace(sd1, unet=3 * sd1.unet, family="sdxl", resolution=1024)
    with pytest.raises(UserError, match="images of .* pixels"):
        plan(larger, 6.2)


@pytest.fixture(scope="module")
def sdxl() -> ModelSizes:
    return replace(sizes_of("sdxl"), text=817_720_320)


def generated(found: TrainingPlan, sizes: ModelSizes, **changes: Any) -> tuple[int, int]:
    """What generation takes in a plan's way with all together and with one part at a time."""
    return generation(sizes, settings(**changes), found, found.memory)


@pytest.mark.usefixtures("_half")
@pytest.mark.parametrize("changes", [{"kind": "full"}, {}, {"prior": "images"}, {"kind": "full", "train_text": True}])
def test_generating_fits_where_training_does(sdxl: ModelSizes, sd1: ModelSizes, changes: Any) -> None:
    ways: set[tuple[str, bool]] = set()
    for gib in (2.8, 3, 4, 5, 6, 7.5, 8, 9, 10, 11, 12, 16, 24, 48, 80):
        for sizes in (sd1, sdxl):
            try:
                found = plan(sizes, gib, **changes)
            except UserError:
                continue
            together, in_turn = generated(found, sizes, **changes)
            assert in_turn <= together and found.one_part_at_a_time == (together > gib * GIB)
            assert (in_turn if found.one_part_at_a_time else together) <= gib * GIB
            said = [note for note in found.notes if "one part of the model" in note]
            assert len(said) == found.one_part_at_a_time and not any("without" in note for note in found.notes)
            ways.add((sizes.family, found.one_part_at_a_time))
    assert ("sd1", False) in ways and ("sdxl", False) in ways


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_sdxl_on_8_gib_generates_one_part_at_a_time_and_on_10_all_together(sdxl: ModelSizes, kind: str) -> None:
    found = plan(sdxl, 8, kind=kind)
    assert found.one_part_at_a_time and generated(found, sdxl, kind=kind)[1] < 6.5 * GIB
    assert not plan(sdxl, 10, kind=kind).one_part_at_a_time


def test_it_is_said_where_training_fits_and_generating_does_not(sd1: ModelSizes) -> None:
    large = replace(sd1, text=4 * sd1.text + 10**9)
    found = plan(large, 4, kind="full")
    assert found.one_part_at_a_time and any("may be skipped" in note for note in found.notes)


def test_what_excludes_each_other_is_said(sd1: ModelSizes) -> None:
    with pytest.raises(UserError, match="does not work with fp16"):
        plan(sd1, 48, kind="full", precision="fp16", fused_backward=True)
    with pytest.raises(UserError, match="bitsandbytes"):
        plan(sd1, 48, optimizer="adamw8bit")


def test_on_a_cpu_it_is_fp32_whatever_the_memory(sd1: ModelSizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = plan_training(settings(kind="full"), sd1, torch.device("cpu"))
    assert found.precision == found.weights == "fp32" and found.autocast is None


@pytest.mark.slow
def test_the_table_is_what_is_counted(sd1: ModelSizes) -> None:
    """A pass at full size through tensors without content."""
    found = count_memory.count("sd1", 64, 1, "half", checkpointing=False)
    table = estimate(sd1, settings(kind="full", prior="off"), Way("bf16", "bf16", "adafactor", True, False))
    assert found.weights == table["weights"]
    assert table["activations"] == pytest.approx(found.peak, rel=0.03)


@pytest.mark.slow
def test_what_is_drawn_is_what_is_counted() -> None:
    """Denoising and decoding at full size through tensors without content."""
    for family, side in (("sd1", 64), ("sdxl", 128)):
        table = planning.CELL_BYTES[family]
        for mode in ("half", "mixed"):
            found = count_memory.count_denoising(family, side, 2, mode)
            copies = found.weights / 2 if mode == "mixed" else 0
            assert 2 * table[mode][-1] * side**2 + copies == pytest.approx(found.peak, rel=0.03)
        assert table["fp32"] == pytest.approx([2 * cell for cell in table["half"]], rel=0.01)
    decoded, encoded = (count_memory.count_autoencoder(64, encoding=encoding) for encoding in (False, True))
    assert decoded.weights == planning.VAE_BYTES and encoded.peak < decoded.peak
    assert planning.DECODED_CELL_BYTES * 64**2 == pytest.approx(decoded.peak, rel=0.01)


def test_counting_counts_what_lives() -> None:
    with FakeTensorMode(), LiveBytes() as live:
        a = torch.empty(1000)
        b = a.view(10, 100)  # the same memory
        c = b * 2
        assert live.live == 8000
        del c
        assert live.live == 4000 and live.peak == 8000
        del a
        assert live.live == 4000
        del b
        assert live.live == 0


def test_counting_agrees_with_a_count_by_hand() -> None:
    with FakeTensorMode(), LiveBytes() as live:
        weight = torch.empty(100, 100, requires_grad=True)
        x = torch.empty(50, 100)
        before = live.live
        out = (x @ weight).exp().exp()  # each exp keeps its output
        assert live.live - before == 2 * 50 * 100 * 4
        out.sum().backward()
        assert weight.grad is not None and live.peak - before >= 100 * 100 * 4 + 2 * 50 * 100 * 4


def test_text_encoders_that_learn_are_counted_as_they_lie(sd1: ModelSizes) -> None:
    """In fp32 beside a UNet in bf16, as AdamW and small steps want it; a LoRA's as the UNet."""
    way = Way("bf16", "bf16", "adafactor", False, False)
    for kind, width in (("full", 4), ("LoRA", 2)):
        without, learning = (estimate(sd1, settings(kind=kind, train_text=text), way) for text in (False, True))
        lora = 4 * 16 * sd1.lora_text if kind == "LoRA" else 0
        assert learning["weights"] - without["weights"] == width * sd1.text + lora
        assert learning["gradients"] - without["gradients"] == (lora or 4 * sd1.text)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@given(steps=st.integers(1, 3000), warm_up=st.integers(0, 50))
def test_rates_rise_then_follow_the_schedule(name: str, steps: int, warm_up: int) -> None:
    chosen = settings(schedule=name, steps=steps, warm_up=min(warm_up, steps))
    scales = [rate_scale(chosen, step) for step in range(steps)]
    assert all(0 < scale <= 1 for scale in scales)
    rising, falling = scales[: chosen.warm_up], scales[chosen.warm_up :]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    if name == "constant":
        assert all(scale == 1 for scale in falling)
