"""Cross-attention layers are found in every codebase, computed in plain sight, and shown another prompt."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_methods.attention import (
    ContextShift,
    CrossAttention,
    cross_attentions,
    intercept,
    pad_tokens,
    prompt_input,
    self_attentions,
    shifted_context,
)
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.directions import fit_tokens
from tests.pix2pix_zero.bare import DIM, MAKERS, TOKENS, diffusers_unet, latents, leftovers, predict, prompts


def states(layer: CrossAttention, rows: int) -> torch.Tensor:
    return torch.randn(rows, 16, cast(nn.Linear, layer.module.to_q).in_features)


@pytest.mark.parametrize("codebase", MAKERS)
def test_every_transformer_block_has_one_of_each(codebase: str) -> None:
    unet = MAKERS[codebase]()
    crossed, own = cross_attentions(unet), self_attentions(unet)
    assert len(crossed) == len(own) > 3
    assert all(layer.name.endswith(".attn2") for layer in crossed)
    assert {id(layer.module) for layer in crossed}.isdisjoint(id(layer.module) for layer in own)


def test_a_block_that_only_looks_at_the_prompt_has_two() -> None:
    unet = diffusers_unet(only_cross_attention=True)
    names = [layer.name.rpartition(".")[2] for layer in cross_attentions(unet)]
    assert names.count("attn1") >= len(self_attentions(unet)) and "attn2" in names
    assert len(self_attentions(unet)) + names.count("attn1") == names.count("attn2")


def test_ldm_blocks_without_self_attention() -> None:
    unet = MAKERS["ldm"](disable_self_attentions=[True, False])
    names = [layer.name.rpartition(".")[2] for layer in cross_attentions(unet)]
    assert 0 < names.count("attn1") < names.count("attn2")


@pytest.mark.parametrize(
    ("codebase", "dtype"),
    [("diffusers", torch.float32), ("diffusers", torch.float64), ("ldm", torch.float32)],  # `ldm` knows no fp64
)
def test_explicit_attention_is_what_the_layer_computes(codebase: str, dtype: torch.dtype) -> None:
    unet = MAKERS[codebase]().to(dtype)
    for layer in cross_attentions(unet):
        hidden, context = states(layer, 3).to(dtype), prompts(3, dtype=dtype)
        prompt = prompt_input((context,), {})
        assert prompt is not None
        maps = layer.probabilities(hidden, prompt)
        assert maps.shape == (3, layer.heads, 16, TOKENS) and maps.dtype == dtype
        assert torch.allclose(maps.sum(-1), torch.ones(()).to(maps), atol=1e-6)
        with torch.no_grad():
            difference = layer.attend(maps, prompt) - layer.module(hidden, context)
        assert difference.abs().max() < 1e-5


def test_a_masked_token_is_not_seen() -> None:
    unet = diffusers_unet()
    layer = cross_attentions(unet)[0]
    hidden, context = states(layer, 2), prompts()
    bias = torch.zeros(2, 1, TOKENS)
    bias[..., 3:] = -1e4
    prompt = prompt_input((), {"encoder_hidden_states": context, "attention_mask": bias})
    assert prompt is not None
    with torch.no_grad():
        maps = layer.probabilities(hidden, prompt)
        assert maps[..., 3:].max() == 0
        wanted = layer.module(hidden, encoder_hidden_states=context, attention_mask=bias)
        assert (layer.attend(maps, prompt) - wanted).abs().max() < 1e-5
        boolean = prompt_input((context,), {"mask": bias[:, 0] == 0})
        assert boolean is not None
        assert torch.equal(layer.probabilities(hidden, boolean), maps)


def test_large_scores_in_half_precision_stay_finite_under_autocast() -> None:
    unet = diffusers_unet()
    layer = cross_attentions(unet)[0]
    hidden, context = 3e3 * states(layer, 1), 3e3 * prompts(1)
    prompt = prompt_input((context,), {})
    assert prompt is not None
    with torch.autocast("cpu", dtype=torch.float16):
        maps = layer.probabilities(hidden, prompt)
    assert maps.dtype == torch.float32 and torch.isfinite(maps).all()


def test_without_a_context_it_is_self_attention() -> None:
    assert prompt_input((), {}) is None
    assert prompt_input((None,), {"mask": torch.ones(1)}) is None
    assert prompt_input((), {"context": prompts(), "additional_tokens": prompts()}) is None
    given_apart = prompt_input((), {"context": prompts(), "value": prompts(seed=5)})
    assert given_apart is not None and torch.equal(given_apart.values, prompts(seed=5))


@pytest.mark.parametrize("entered", ["blocks", "layers"])
@pytest.mark.parametrize("codebase", MAKERS)
def test_a_shift_is_another_prompt_for_its_rows_and_nothing_for_the_others(codebase: str, entered: str) -> None:
    unet, x, context = MAKERS[codebase](), latents(3), prompts(3)
    direction = torch.randn(TOKENS, DIM)
    changed = context.clone()
    changed[1] += direction
    shift = ContextShift(lambda: [None, direction, None])
    layers = [(layer.module, shift) for layer in cross_attentions(unet)]
    with torch.no_grad():
        with shifted_context(unet, shift) if entered == "blocks" else intercept(layers):
            found = predict(unet, x, context)
        assert torch.equal(found, predict(unet, x, changed))
        assert not torch.equal(found[1], predict(unet, x, context)[1])
    assert leftovers(unet) == []


def test_an_intercepted_layer_sees_the_shift_whichever_was_entered_first() -> None:
    unet, x, context = diffusers_unet(), latents(1), prompts(1)
    shift = ContextShift(lambda: [torch.ones(TOKENS, DIM)])
    layer = cross_attentions(unet)[0]
    seen: list[torch.Tensor] = []

    def spy(original: Any, hidden: Any, /, *args: Any, **kwargs: Any) -> Any:
        told = prompt_input(args, kwargs)
        assert told is not None
        seen.append(told.context)
        return original(hidden, *args, **kwargs)

    with torch.no_grad():
        with shifted_context(unet, shift), intercept([(layer.module, spy)]):
            predict(unet, x, context)
        with intercept([(layer.module, spy)]), shifted_context(unet, shift):
            predict(unet, x, context)
    assert len(seen) == 2 and all(torch.equal(c, context + 1) for c in seen)


@pytest.mark.parametrize("codebase", MAKERS)
def test_a_longer_direction_finds_room_and_the_other_rows_do_not_notice(codebase: str) -> None:
    unet, x, context = MAKERS[codebase](), latents(2), prompts(2)
    direction = torch.randn(2 * TOKENS, DIM)
    with torch.no_grad():
        plain = predict(unet, x, context)
        with shifted_context(unet, ContextShift(lambda: [direction, None])):
            found = predict(unet, x, context)
    assert (found[1] - plain[1]).abs().max() < 1e-4
    assert (found[0] - plain[0]).abs().max() > 1e-3


def test_the_empty_prompt_fills_added_chunks() -> None:
    empty = prompts(1, seed=9)
    padded = pad_tokens(prompts(2), 3 * TOKENS, empty)
    assert padded.shape == (2, 3 * TOKENS, DIM)
    assert torch.equal(padded[:, :TOKENS], prompts(2))
    assert torch.equal(padded[1, TOKENS : 2 * TOKENS], empty[0]) and torch.equal(padded[0, 2 * TOKENS :], empty[0])


@given(st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_chunks_are_filled_as_directions_are(chunks: int, wanted: int) -> None:
    direction = torch.randn(77 * chunks, DIM)
    padded = pad_tokens(direction[None], 77 * wanted)[0]
    assert torch.equal(padded[: 77 * wanted], fit_tokens(direction, max(77 * wanted, 77 * chunks))[: 77 * wanted])
    context = prompts(2, 77 * wanted)
    shifted = ContextShift(lambda: [direction, None]).shifted(context)
    longest = 77 * max(chunks, wanted)
    assert torch.allclose(shifted[0] - pad_tokens(context, longest)[0], fit_tokens(direction, longest), atol=1e-5)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_padding_and_shifting_over_all_sizes(tokens: int, longer: int, rows: int) -> None:
    context, direction = prompts(rows, tokens), torch.randn(longer, DIM)
    shifted = ContextShift(lambda: [direction] * rows).shifted(context)
    assert shifted.shape == (rows, max(tokens, longer), DIM)
    whole, added = pad_tokens(context, longer), pad_tokens(direction[None], tokens)
    assert torch.allclose(shifted - whole, added.expand(rows, -1, -1), atol=1e-5)
    assert torch.equal(context, prompts(rows, tokens))  # the host's own is not written to


def test_the_sum_is_made_once_a_run_and_in_the_context_dtype() -> None:
    direction, context = torch.ones(TOKENS, DIM), prompts(1).half()
    shift = ContextShift(lambda: [direction])
    first = shift.shifted(context)
    assert first.dtype == torch.float16 and shift.shifted(context) is first
    assert shift.shifted(context.clone()) is not first


def test_somebody_elses_rows_pass() -> None:
    context = prompts(3)
    assert ContextShift(lambda: [torch.ones(TOKENS, DIM)]).shifted(context) is context
    assert ContextShift(lambda: [None, None, None]).shifted(context) is context


def test_a_direction_of_another_model_is_refused_in_a_sentence_and_leaves_nothing() -> None:
    unet = diffusers_unet()
    shift = ContextShift(lambda: [torch.ones(TOKENS, DIM + 4)])
    with pytest.raises(Unsupported, match="16 channels"), shifted_context(unet, shift):
        predict(unet, latents(1), prompts(1))
    assert leftovers(unet) == []


def test_a_unet_without_cross_attention_has_none() -> None:
    assert list(cross_attentions(nn.Sequential(nn.Conv2d(4, 4, 3)))) == []
