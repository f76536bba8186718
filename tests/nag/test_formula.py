"""NAG against a plain, slow form, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.attention.cross import cross_attentions
from lib_methods.hosts.bare import BareSampling, rows_of
from lib_methods.nag.apply import NagHook, nag
from lib_methods.nag.settings import NagSettings
from tests.fabric.small_model import small_unet


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.floats(1, 12), st.floats(0.5, 5), st.floats(0, 1)
)  # fmt: skip
def test_equals_the_plain_form(rows: int, heads: int, pixels: int, scale: float, tau: float, alpha: float) -> None:
    positive, negative = torch.randn(2, rows, heads, pixels, 5, generator=torch.Generator().manual_seed(rows + heads))
    got = nag(positive, negative, scale, tau, alpha)
    for row in range(rows):
        for pixel in range(pixels):
            there, away = (x[row, :, pixel].flatten().double() for x in (positive, negative))
            moved = there * scale - away * (scale - 1)
            most = tau * there.abs().sum()
            if scale > 1 and moved.abs().sum() > most:
                moved = moved * most / moved.abs().sum()
            wanted = alpha * moved + (1 - alpha) * there
            assert torch.allclose(got[row, :, pixel].flatten().double(), wanted, rtol=1e-4, atol=1e-5)


def plain(layer: Any, hidden: Tensor, context: Tensor, negative: Tensor) -> Tensor:
    """One row (pixels, channels) through a cross-attention layer, head by head, with scale 3, tau 2.5 and alpha 0.5."""

    def attended(tokens: Tensor) -> Tensor:
        q, k, v = (
            linear(x).chunk(layer.heads, -1)
            for linear, x in ((layer.to_q, hidden), (layer.to_k, tokens), (layer.to_v, tokens))
        )
        return torch.cat([(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in zip(q, k, v)], -1)

    there, away = attended(context), attended(negative)
    moved = there * 3 - away * 2
    norms = [x.abs().sum(-1, keepdim=True) for x in (moved, there)]
    moved = torch.where(norms[0] > 2.5 * norms[1], moved * 2.5 * norms[1] / norms[0], moved)
    out = 0.5 * moved + 0.5 * there
    for part in layer.to_out:
        out = part(out)
    return out


@pytest.mark.parametrize(("conds", "unconds", "slices"), [(2, 2, None), (2, 2, 2), (3, 0, None), (1, 1, 1)])
@torch.no_grad()
def test_rows_with_the_prompt_move_away_from_their_images_negative(
    conds: int, unconds: int, slices: int | None
) -> None:
    unet, rows = small_unet(), rows_of(conds, unconds)
    sampling, generator = BareSampling(unet), torch.Generator().manual_seed(5)
    x, context, negative = (
        torch.randn(n, *shape, generator=generator)
        for n, shape in ((len(rows), (4, 8, 8)), (len(rows), (7, 16)), (conds, (154, 16)))
    )
    off = sampling.denoise(x, context, rows, slices=slices)
    hook = NagHook(sampling, negative, NagSettings(scale=3.0, tau=2.5, alpha=0.5))
    sampling.add_hook(hook)
    got = sampling.denoise(x, context, rows, slices=slices)

    layers = cross_attentions(unet)
    handles = []
    expected = []
    for i, row in enumerate(rows):
        for layer in layers if i < conds else ():
            handles.append(
                layer.module.register_forward_hook(
                    lambda module, args, kwargs, _, image=row.image: plain(
                        module, args[0][0], kwargs["encoder_hidden_states"][0], negative[image]
                    )[None],
                    with_kwargs=True,
                )
            )
        expected.append(unet(x[i : i + 1], torch.tensor([1.5]), context[i : i + 1]).sample)
        while handles:
            handles.pop().remove()
    assert hook.acted
    assert torch.allclose(got, torch.cat(expected), atol=1e-5)
    assert torch.allclose(got[conds:], off[conds:], atol=1e-6)
    assert (got[:conds] - off[:conds]).abs().max() > 1e-4
    assert not any("forward" in module.__dict__ for module in unet.modules())
