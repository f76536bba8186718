"""The averaged weights are the formula's, and lending them to the model leaves the model's own untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.training.weights import Ema


def walk(parameter: nn.Parameter, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    parameter.data.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def test_the_average_is_the_formulas() -> None:
    weights = nn.Parameter(torch.ones(3, dtype=torch.float64))
    weights.data = weights.data.float()
    ema, wanted = Ema([weights], 0.9), weights.detach().double().clone()
    for step in range(1, 200):
        walk(weights, step)
        ema.update()
        kept = min(0.9, (1 + step) / (10 + step))
        wanted = kept * wanted + (1 - kept) * weights.detach().double()
    torch.testing.assert_close(ema.averages[0].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lent_weights_are_given_back_bit_by_bit_even_after_an_error(dtype: torch.dtype) -> None:
    weights = nn.Parameter(torch.randn(50).to(dtype))
    ema = Ema([weights], 0.5)
    walk(weights, 1)
    ema.update()
    own = weights.detach().clone()
    with ema.applied():
        assert torch.equal(weights, ema.averages[0].to(dtype)) and not torch.equal(weights, own)
    assert torch.equal(weights, own)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert torch.equal(weights, own)


def test_a_saved_average_goes_on_exactly() -> None:
    runs = []
    for pause in (False, True):
        weights = nn.Parameter(torch.zeros(4))
        ema = Ema([weights], 0.99)
        for step in range(10):
            if pause and step == 5:
                state = ema.state_dict()
                ema = Ema([weights], 0.99)
                ema.load_state_dict(state)
            walk(weights, step)
            ema.update()
        runs.append(ema.averages[0])
    assert torch.equal(runs[0], runs[1])


def test_averages_of_other_weights_are_refused() -> None:
    ema = Ema([nn.Parameter(torch.zeros(4))], 0.9)
    for other in ([nn.Parameter(torch.zeros(5))], [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]):
        with pytest.raises(DreamBoothError, match="other weights"):
            ema.load_state_dict(Ema(other, 0.9).state_dict())
