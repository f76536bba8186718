"""The optimizers do what their papers say, fused into the backward pass or not, and continue exactly after a pause."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib_methods.dreambooth.training.optimizers import Group, Stepper, build_optimizer
from lib_methods.errors import UserError


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)).to(dtype)


def loss_of(model: nn.Module, step: int, rows: slice = slice(None)) -> Tensor:
    dtype = next(model.parameters()).dtype
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(step)).to(dtype)[rows]
    return (model(x).float() - 1).square().mean()


def train(model: nn.Module, stepper: Stepper, steps: range) -> None:
    for step in steps:
        stepper.backward(loss_of(model, step))
        stepper.step()
        stepper.zero()


def stepper_for(model: nn.Module, name: str = "adafactor", rate: float = 1e-2, **options: object) -> Stepper:
    return build_optimizer([Group(list(model.parameters()), rate)], name, **options)  # type: ignore[arg-type]


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


# -- Adafactor


# -- rounding


# -- fused into the backward pass


@pytest.mark.parametrize(
    ("name", "dtype"), [("adafactor", torch.float32), ("adafactor", torch.bfloat16), ("adamw", torch.float32)]
)
def test_fused_and_unfused_move_the_weights_alike(name: str, dtype: torch.dtype) -> None:
    found = []
    for fused in (False, True):
        model = network(dtype)
        start = weights_of(model)
        train(model, stepper_for(model, name, fused=fused, clip=0.0), range(6))
        found.append(weights_of(model))
        assert not torch.equal(found[-1], start)
    assert torch.equal(found[0], found[1])


def test_fused_there_is_never_more_than_one_gradient() -> None:
    model = network()
    alive: list[int] = []
    stepper = stepper_for(model, fused=True)
    for parameter in model.parameters():  # after the stepper's own hook
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    stepper.backward(loss_of(model, 0))
    assert len(alive) == len(list(model.parameters())) and max(alive) == 0


def test_fused_clipping_holds_each_tensors_gradient() -> None:
    seen: dict[str, list[float]] = {}
    for clip in (0.0, 1e-3):
        model = network()
        stepper = stepper_for(model, "adamw", fused=True, clip=clip)
        stepper.backward(loss_of(model, 0))
        stepper.step()
        moments = [v for k, v in stepper.state_dict().items() if k.endswith("exp_avg")]
        seen[str(clip)] = [float(v.norm()) / 0.1 for v in moments]  # 1 - beta1
    assert max(seen["0.0"]) > 1e-2 and max(seen["0.001"]) <= 1.001e-3
    assert stepper.gradient_norm > 1e-2  # before clipping


def test_gradients_that_are_not_finite_move_nothing() -> None:
    for fused in (False, True):
        model = network()
        stepper = stepper_for(model, fused=fused, weight_decay=0.0)
        before = weights_of(model)
        stepper.backward(loss_of(model, 0) * math.inf)
        assert stepper.step() is False
        stepper.zero()
        assert torch.equal(weights_of(model), before)
        train(model, stepper, range(2))
        assert bool(weights_of(model).isfinite().all()) and not torch.equal(weights_of(model), before)


# -- clipping, gathering, rates, loss scale


def test_unfused_clipping_is_of_the_norm_over_all_weights() -> None:
    model = network()
    stepper = stepper_for(model, "adamw", clip=0.01)
    stepper.backward(loss_of(model, 0))
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    stepper.step()
    assert stepper.gradient_norm == pytest.approx(float(whole), rel=1e-5) and whole > 0.02
    clipped = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_gradients_gathered_over_passes_are_those_of_the_whole_batch(name: str) -> None:
    found = []
    for parts in ([slice(0, 4)], [slice(0, 2), slice(2, 4)]):
        model = network()
        stepper = stepper_for(model, name, rate=1e-3)
        for rows in parts:
            stepper.backward(loss_of(model, 0, rows) / len(parts))
        stepper.step()
        found.append(weights_of(model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_groups_have_rates_of_their_own(fused: bool) -> None:
    unet, text = network(), network()
    stepper = build_optimizer(
        [Group(list(unet.parameters()), 1e-2), Group(list(text.parameters()), 0.0)],
        "adamw",
        fused=fused,
    )
    before, before_text = weights_of(unet), weights_of(text)
    stepper.backward(loss_of(unet, 0) + loss_of(text, 0), 0.5)
    stepper.step(0.5)
    stepper.zero()
    assert torch.equal(weights_of(text), before_text)
    # AdamW's first step is the rate itself, beside the weights' decay
    assert float((weights_of(unet) - before).abs().median()) == pytest.approx(5e-3, rel=0.05)


def test_the_loss_scale_changes_nothing_and_survives_an_overflow() -> None:
    found = []
    for scaled in (False, True):
        model = network()
        stepper = stepper_for(model, "adamw", scaled=scaled)
        train(model, stepper, range(3))
        found.append(weights_of(model))
    assert torch.equal(found[0], found[1])  # a power of two
    assert stepper.scale is not None
    before = stepper.scale.value
    stepper.backward(loss_of(model, 3) * 1e36)
    assert stepper.step() is False and stepper.scale.value == before / 2
    assert torch.equal(weights_of(model), found[1])


def test_the_loss_scale_grows_after_enough_good_steps() -> None:
    model = network()
    stepper = stepper_for(model, "adamw", scaled=True)
    assert stepper.scale is not None
    stepper.scale.patience = 3
    before = stepper.scale.value
    train(model, stepper, range(3))
    assert stepper.scale.value == 2 * before


# -- going on


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_training_goes_on_bit_by_bit(name: str, fused: bool) -> None:
    dtype = torch.bfloat16 if name == "adafactor" else torch.float32
    build: Callable[[nn.Module], Stepper] = lambda m: stepper_for(m, name, fused=fused, seed=7)  # noqa: E731
    whole = network(dtype)
    train(whole, build(whole), range(8))
    model = network(dtype)
    first = build(model)
    train(model, first, range(4))
    state, first_weights = first.state_dict(), model.state_dict()
    again = network(dtype)
    again.load_state_dict(first_weights)
    second = build(again)
    second.load_state_dict(state)
    train(again, second, range(4, 8))
    assert torch.equal(weights_of(again), weights_of(whole))


def test_the_loss_scale_is_saved_with_the_rest() -> None:
    model = network()
    stepper = stepper_for(model, "adamw", scaled=True)
    stepper.backward(loss_of(model, 3) * 1e36)
    stepper.step()
    other = stepper_for(network(), "adamw", scaled=True)
    other.load_state_dict(stepper.state_dict())
    assert other.scale is not None and stepper.scale is not None and other.scale.value == stepper.scale.value
    with pytest.raises(UserError, match="fp16"):
        other.load_state_dict(stepper_for(network(), "adamw").state_dict())


def test_a_state_is_flat_tensors_that_later_steps_do_not_change() -> None:
    model = network()
    stepper = stepper_for(model, "adamw")
    train(model, stepper, range(2))
    state = stepper.state_dict()
    copy = {name: value.clone() for name, value in state.items()}
    train(model, stepper, range(2, 4))
    assert all(isinstance(value, Tensor) and torch.equal(value, copy[name]) for name, value in state.items())


def test_a_state_of_other_weights_is_refused() -> None:
    small, large = network(), nn.Sequential(nn.Conv2d(4, 9, 3), nn.Conv2d(9, 4, 1))
    for name in ("adamw", "adafactor"):
        stepper = stepper_for(small, name)
        train(small, stepper, range(1))
        for other in (large, nn.Sequential(*large, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))):
            with pytest.raises(UserError, match="other weights"):
                stepper_for(other, name).load_state_dict(stepper.state_dict())


# -- what cannot be had


def test_a_missing_package_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="bitsandbytes, which is not installed"):
        stepper_for(network(), "adamw8bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install prodigyopt=="):
        stepper_for(network(), "prodigy")


# -- 8-bit AdamW, with the package itself


def wide_network() -> nn.Sequential:
    """Of tensors that are large enough for 8-bit states (4096 numbers), and small ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 128, 3), nn.SiLU(), nn.Conv2d(128, 4, 3))


@pytest.mark.parametrize("fused", [False, True])
def test_8bit_adamw_moves_the_weights_about_as_adamw_does(fused: bool) -> None:
    pytest.importorskip("bitsandbytes")
    start, moves = weights_of(wide_network()), []
    for name in ("adamw", "adamw8bit"):
        model = wide_network()
        stepper = stepper_for(model, name, 1e-3, fused=fused)
        train(model, stepper, range(20))
        moves.append(weights_of(model) - start)
        kinds = {value.dtype for value in stepper.state_dict().values()}
        assert (torch.uint8 in kinds) == (name == "adamw8bit")
    assert (moves[1] - moves[0]).norm() < 0.1 * moves[0].norm()


@pytest.mark.parametrize("fused", [False, True])
def test_a_training_with_8bit_adamw_goes_on_bit_by_bit(fused: bool) -> None:
    pytest.importorskip("bitsandbytes")
    whole, parts = wide_network(), wide_network()
    train(whole, stepper_for(whole, "adamw8bit", fused=fused), range(6))
    first = stepper_for(parts, "adamw8bit", fused=fused)
    train(parts, first, range(3))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    resumed = wide_network()
    resumed.load_state_dict(parts.state_dict())
    second = stepper_for(resumed, "adamw8bit", fused=fused)
    second.load_state_dict(state)
    train(resumed, second, range(3, 6))
    assert torch.equal(weights_of(resumed), weights_of(whole))


# -- Prodigy


def test_prodigy_is_the_library_s_and_finds_its_rate() -> None:
    prodigy = pytest.importorskip("prodigyopt").Prodigy
    ours, theirs = network(), network()
    stepper = stepper_for(ours, "prodigy", rate=1.0, clip=0.0, weight_decay=0.01)
    reference = prodigy(theirs.parameters(), lr=1.0, weight_decay=0.01, use_bias_correction=True, safeguard_warmup=True)
    before = stepper.step_size
    train(ours, stepper, range(20))
    for step in range(20):
        loss_of(theirs, step).backward()
        reference.step()
        reference.zero_grad()
    assert torch.equal(weights_of(ours), weights_of(theirs))
    assert stepper.step_size > before


def test_prodigy_goes_on_exactly() -> None:
    pytest.importorskip("prodigyopt")
    whole, first, second = network(), network(), network()
    train(whole, stepper_for(whole, "prodigy", rate=1.0), range(12))
    stepper = stepper_for(first, "prodigy", rate=1.0)
    train(first, stepper, range(7))
    second.load_state_dict(first.state_dict())
    again = stepper_for(second, "prodigy", rate=1.0)
    again.load_state_dict(stepper.state_dict())
    train(second, again, range(7, 12))
    assert torch.equal(weights_of(second), weights_of(whole))
    with pytest.raises(UserError, match="another one"):
        again.load_state_dict(stepper_for(network(), "adamw").state_dict())


@pytest.mark.parametrize(("name", "fused"), [("adamw", False), ("adamw", True), ("adafactor", True)])
def test_weights_that_were_away_learn_on_as_if_they_had_stayed(name: str, fused: bool) -> None:
    """A way to another device is a swap of the parameters' data, as one to fp64 and back is."""
    results = []
    for away in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        parameters = list(network.parameters())
        stepper = build_optimizer([Group(parameters, 1e-2)], name, fused=fused)
        for _ in range(3):
            stepper.backward(network(torch.ones(2, 4)).square().sum())
            stepper.step()
            stepper.zero()
            if away:
                network.to(torch.float64)
                network.to(torch.float32)
        assert all(one is other for one, other in zip(parameters, network.parameters()))
        results.append([parameter.detach().clone() for parameter in parameters])
    torch.manual_seed(0)
    start = nn.Linear(4, 8).weight
    assert not torch.equal(results[0][0], start)
    assert all(torch.equal(one, other) for one, other in zip(*results))
