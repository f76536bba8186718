"""Large tensors are moved block by block as they would be as a whole, and rounded by the same random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lib_methods.device import LiveBytes
from lib_methods.dreambooth.training import adafactor as blocks
from lib_methods.dreambooth.training import adafactor as rounding
from lib_methods.dreambooth.training.adafactor import Adafactor, Rounding, round_into
from lib_methods.dreambooth.training.optimizers import Group, build_optimizer

SHAPES = [(37, 11), (64, 3, 3, 3), (5, 40), (1, 9), (3, 1), (2, 200)]


def plain_adafactor(
    start: Tensor, gradients: list[Tensor], rate: float, decay: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Algorithm 4 of arXiv 1804.04235 word by word, in double precision, with the rate as it is given."""
    weights, row, column = start.double().flatten(1), torch.zeros(()), torch.zeros(())
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient.double().flatten(1)
        squares, beta = gradient.square() + 1e-30, 1 - step**-0.8
        row = beta * row + (1 - beta) * squares.sum(1)
        column = beta * column + (1 - beta) * squares.sum(0)
        update = gradient / (row[:, None] * column[None] / row.sum()).sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        weights = weights - rate * update - rate * decay * weights
    return weights.view(start.shape), {"row": row / column.numel(), "column": column / row.numel()}


@pytest.mark.parametrize("cpu", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("size", [1, 100, 2**18])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_blocks_of_any_size_it_is_adafactor(
    shape: tuple[int, ...], size: int, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK" if cpu else "GPU_BLOCK", size)
    monkeypatch.setattr(blocks, "on_cpu", lambda device: cpu)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) * 10.0 ** (step % 3 - 3) for step in range(6)]
    weights = nn.Parameter(start.clone())
    optimizer = Adafactor([weights], lr=1e-2, weight_decay=0.1)
    for gradient in gradients:
        weights.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weights.grad, gradient)
    expected, means = plain_adafactor(start, gradients, 1e-2, 0.1)
    torch.testing.assert_close(weights.detach().double(), expected, rtol=2e-6, atol=2e-6)
    for name, value in means.items():
        torch.testing.assert_close(optimizer.state[weights][name].double(), value, rtol=2e-6, atol=0)


def test_bfloat16_weights_move_in_blocks_as_they_do_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random numbers: apart are only the few for which the last bit of fp32 decides."""
    start = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for size in (500, 2**18):
        monkeypatch.setattr(blocks, "CPU_BLOCK", size)
        weights = nn.Parameter(start.clone())
        optimizer = Adafactor([weights], lr=1e-3)
        for step in range(3):
            weights.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
            optimizer.step()
        found.append(weights.detach())
    assert not torch.equal(found[0], start)
    assert float((found[0] != found[1]).float().mean()) < 1e-3
    assert float((found[0] != start).float().mean()) > 0.1


def test_the_memory_format_changes_nothing() -> None:
    start = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weights = nn.Parameter(start.clone(memory_format=memory_format))
        optimizer = Adafactor([weights], lr=1e-2)
        for step in range(3):
            gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
            weights.grad = gradient.to(memory_format=memory_format)
            optimizer.step()
        assert weights.is_contiguous(memory_format=memory_format)
        found.append(weights.detach().contiguous())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_takes_the_working_space_that_is_planned_for(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four numbers in fp32 for each of a block (`plan.estimate`), beside the state's rows and columns."""
    monkeypatch.setattr(blocks, "GPU_BLOCK", 4096)
    monkeypatch.setattr(blocks, "on_cpu", lambda device: False)
    for shape in ((128, 256), (16, 128), (2000,)):
        weights = nn.Parameter(torch.randn(shape).to(dtype))
        optimizer = Adafactor([weights], weight_decay=0.01)
        weights.grad = torch.randn(shape).to(dtype)
        optimizer.step()
        with LiveBytes() as live:
            for there in (weights, weights.grad, *optimizer.state[weights].values()):
                if isinstance(there, Tensor):
                    live.see(there)
            before = live.live
            optimizer.step()
        assert 0 < live.peak - before <= 16 * min(weights.numel(), 4096) + 16 * sum(shape) + 1000, (
            shape,
            live.peak - before,
        )


def test_rounded_in_blocks_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", 300)
    values = torch.randn(61, 31)
    whole, parts = torch.empty(61, 31).bfloat16(), torch.empty(61, 31).bfloat16()
    round_into(whole, values, torch.Generator().manual_seed(3))
    generator, taken = torch.Generator().manual_seed(3), blocks.row_blocks(values)
    for block in taken:
        round_into(parts[block], values[block], generator)
    assert len(taken) > 5 and torch.equal(parts, whole)


def test_blocks_cover_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 64, 1000, 2**18):
        monkeypatch.setattr(blocks, "CPU_BLOCK", size)
        for shape in ((1, 1), (4, 7), (23, 5), (1000, 3), (8, 4000)):
            rows = torch.arange(shape[0])
            found = blocks.row_blocks(torch.empty(shape))
            assert torch.equal(torch.cat([rows[block] for block in found]), rows)
            assert all(len(rows[block]) % 4 == 0 for block in found[:-1])
            assert all(len(rows[block]) * shape[1] <= max(size, 4 * shape[1]) for block in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_in_pieces_is_the_norm(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", 100)
    tensor = torch.randn(30, 11).to(dtype)
    for view in (tensor, tensor.t(), tensor[:, 0]):
        assert float(blocks.norm_of(view)) == pytest.approx(float(view.double().norm()), rel=1e-6)
    tensor[20, 3] = math.nan
    assert math.isnan(float(blocks.norm_of(tensor)))
    tensor[20, 3] = -math.inf
    assert math.isinf(float(blocks.norm_of(tensor)))


@pytest.mark.parametrize("cpu", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_every_value_is_rounded_by_random_numbers_of_its_own(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four are made of each draw: none may be like its neighbours, and none lean to one side."""
    monkeypatch.setattr(rounding, "on_cpu", lambda device: cpu)
    count = 400_000
    rounded = torch.empty(count, dtype=torch.bfloat16)
    for share in (1 / 256, 0.3, 0.75):
        round_into(rounded, torch.full((count,), 1 + share * 2**-7), torch.Generator().manual_seed(1))
        up = (rounded > 1).double()
        error = math.sqrt(share * (1 - share) / (count / 4))
        assert up.view(-1, 4).mean(0).tolist() == pytest.approx([share] * 4, abs=5 * error)
        for apart in range(1, 9):
            together = (up[apart:] - share) * (up[:-apart] - share)
            assert float(together.mean()) == pytest.approx(0, abs=5 * share * (1 - share) / math.sqrt(count))


def test_no_nan_of_arithmetic_becomes_a_number() -> None:
    patterns = [0x7FC00000, -0x400000, 0x7FFFFFFF, 0x7FFF0000, -0x10000]  # of CPUs, of GPUs, and bfloat16's own
    values = torch.tensor(patterns, dtype=torch.int32).view(torch.float32).repeat(50)
    assert bool(values.isnan().all())
    rounded = torch.empty(len(values), dtype=torch.bfloat16)
    round_into(rounded, values, torch.Generator().manual_seed(0))
    assert bool(rounded.isnan().all())


def test_of_a_gradient_only_what_is_not_finite_is_left_out() -> None:
    weights = nn.Parameter(torch.zeros(8, 6))
    stepper = build_optimizer([Group([weights], 1e-2)], "adafactor", fused=True)
    gradient = torch.ones(8, 6)
    gradient[2, 3], gradient[5, 1] = math.nan, -math.inf
    stepper.backward((weights * gradient).sum())
    assert stepper.step() is False
    assert torch.equal(weights.detach() != 0, gradient.isfinite())


def test_adafactor_is_that_of_transformers() -> None:
    reference = pytest.importorskip("transformers.optimization").Adafactor
    shapes = [(6, 10), (7,), (1,), (12, 3)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours = [nn.Parameter(value.clone()) for value in start]
    theirs = [nn.Parameter(value.clone()) for value in start]
    made = [
        Adafactor(ours, lr=1e-2, weight_decay=0.1),
        reference(theirs, lr=1e-2, weight_decay=0.1, scale_parameter=False, relative_step=False),
    ]
    for step in range(12):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator) * 10.0 ** (step % 3)
            other.grad = one.grad.clone()
        for optimizer in made:
            optimizer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_convolution_is_factored_as_a_matrix() -> None:
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    for step in range(5):
        kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(step))
        matrix.grad = kernel.grad.flatten(1).clone()
    made = [Adafactor([kernel]), Adafactor([matrix])]
    for optimizer in made:
        optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert sum(v.numel() for v in made[0].state[kernel].values() if isinstance(v, Tensor)) == 8 + 4 * 9


def test_an_adafactor_step_is_no_larger_than_the_learning_rate() -> None:
    weights = nn.Parameter(torch.zeros(20, 20))
    optimizer = Adafactor([weights], lr=1e-3)
    for scale in (1e-6, 1.0, 1e6, 0.0):  # the last three after a much smaller gradient
        before = weights.detach().clone()
        weights.grad = torch.randn(20, 20) * scale
        optimizer.step()
        assert (weights - before).norm() / 20 <= 1e-3 * 1.001
        assert bool(weights.isfinite().all())


def test_rounding_is_right_on_average_and_hits_the_two_neighbours_only() -> None:
    value = 1 + 0.3 * 2**-7  # bfloat16 has steps of 2**-7 at 1
    rounded = torch.empty(100_000, dtype=torch.bfloat16)
    round_into(rounded, torch.full((100_000,), value), torch.Generator().manual_seed(0))
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    share = float((rounded > 1).float().mean())
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 100_000))


def test_what_bfloat16_can_say_stays_as_it_is() -> None:
    values = torch.cat([torch.randn(1000).bfloat16().float(), torch.tensor([0.0, -0.0, math.inf, -math.inf])])
    rounded = torch.empty(len(values), dtype=torch.bfloat16)
    round_into(rounded, values, torch.Generator().manual_seed(0))
    assert torch.equal(rounded.float(), values)
    nothing = torch.empty(1, dtype=torch.bfloat16)
    round_into(nothing, torch.tensor([math.nan]), torch.Generator().manual_seed(0))
    assert bool(nothing.isnan().all())


def test_steps_far_below_bfloat16s_spacing_are_not_lost() -> None:
    weights = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    optimizer = Adafactor([weights], lr=1e-5)
    for _ in range(100):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    # 100 steps of 1e-5 make 0.001, the spacing below 1 is 0.0039
    assert float(weights.detach().float().mean()) == pytest.approx(1 - 1e-3, abs=1.5e-4)


def test_rounding_depends_on_seed_step_and_tensor_and_on_nothing_else() -> None:
    cpu = torch.device("cpu")

    def drawn(seed: int, step: int, number: int, rounding: Rounding | None = None) -> list[int]:
        generator = (rounding or Rounding(seed)).generator(step, number, cpu)
        return torch.randint(0, 1 << 16, (8,), generator=generator).tolist()

    shared = Rounding(1)
    assert drawn(1, 2, 4, shared) != drawn(1, 2, 3, shared)
    assert drawn(1, 2, 3) == drawn(1, 2, 3, shared)
    assert len({str(drawn(*key)) for key in ((1, 2, 3), (2, 1, 3), (1, 3, 2), (12, 3, 0), (1, 23, 0))}) == 5
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn(1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)
