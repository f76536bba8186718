"""Prompt-to-Prompt against a plain reference with explicit attention maps, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from standalone.engine.denoiser import SigmaDenoiser
from standalone.instruct.prompt_to_prompt import Drawing, SharedAttention, align, draw_pairs, to_pictures, token_places
from standalone.instruct.triplets import world_triplet


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        ([1, 2, 3], [1, 2, 3], [0, 1, 2]),
        ([1, 2, 3], [1, 9, 3], [0, 1, 2]),  # exchanged one for one
        ([1, 2, 3], [1, 7, 8, 3], [0, -1, -1, 2]),  # one became two: no counterpart
        ([1, 3], [1, 2, 3], [0, -1, 1]),
        ([1, 2, 3], [1, 3], [0, 2]),
        ([], [], []),
    ],
)
def test_tokens_find_their_counterparts(before: list[int], after: list[int], places: list[int]) -> None:
    assert align(before, after) == places


class Reference:
    """diffusers' attention processor with explicit maps, which are overwritten pair by pair."""

    def __init__(self, places: list[list[int]], active: list[bool]) -> None:
        self.places, self.active = places, active

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *args: Any, **kw: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(part) for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = attn.get_attention_scores(query, key).view(len(hidden_states), -1, query.shape[1], key.shape[1]).clone()
        count = len(self.places)
        for pair in range(count):
            if not self.active[pair]:
                continue
            if encoder_hidden_states is None:
                maps[count + pair] = maps[pair]
                maps[3 * count + pair] = maps[2 * count + pair]
            else:
                for token, place in enumerate(self.places[pair]):
                    if place >= 0:
                        maps[count + pair, :, :, token] = maps[pair, :, :, place]
        out = attn.batch_to_head_dim(maps.flatten(0, 1) @ value)
        return attn.to_out[1](attn.to_out[0](out))


@pytest.mark.parametrize("active", [[True, True], [False, True], [False, False]])
def test_the_shared_maps_are_those_of_a_plain_reference(model: Any, active: list[bool]) -> None:
    unet = model.model.diffusion_model
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8, 4, 8, 8, generator=generator)
    context = model.get_learned_conditioning(["red circles", "red circles", "two blue squares", "blue squares"] * 2)
    places = [
        token_places(model, "red circles", "two blue squares"),
        token_places(model, "red circles", "blue squares"),
    ]
    time = torch.tensor([500] * 8)
    sharing = SharedAttention(unet, places)
    assert len(sharing.layers) == len(sharing.cross) > 0
    with torch.no_grad():
        plain = unet(x, time, encoder_hidden_states=context).sample
        sharing.active = torch.tensor(active)
        with sharing():
            got = unet(x, time, encoder_hidden_states=context).sample
        kept = unet.attn_processors
        unet.set_attn_processor(Reference(places, active))
        try:
            wanted = unet(x, time, encoder_hidden_states=context).sample
        finally:
            unet.set_attn_processor(kept)
        again = unet(x, time, encoder_hidden_states=context).sample
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain, again)  # nothing is left behind
    changed = (got - plain).abs().flatten(1).amax(1) > 1e-4
    assert changed.tolist() == [False, False, *active, False, False, *active]


def _alone(model: Any, prompt: str, seed: int, drawing: Drawing) -> np.ndarray:
    """One image by Euler's method, without pairs."""
    denoiser = SigmaDenoiser(model)
    sigmas = denoiser.get_sigmas(drawing.steps)
    side = drawing.size // 8
    x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)) * sigmas[0]
    with torch.no_grad():
        cond, uncond = (model.get_learned_conditioning([text]) for text in (prompt, ""))
        for sigma, following in zip(sigmas[:-1], sigmas[1:]):
            one, none = (denoiser(x, sigma.expand(1), cond={"c_crossattn": [c]}) for c in (cond, uncond))
            x = x + (x - none - drawing.cfg_scale * (one - none)) / sigma * (following - sigma)
        return to_pictures(model.decode_first_stage(x))[0]


def test_without_shared_steps_both_pictures_are_drawn_as_if_alone(model: Any) -> None:
    drawing = Drawing(steps=4, cfg_scale=3.0, size=64)
    drawn = draw_pairs(model, "red circles", "blue squares on black", [7, 8], [0.0, 0.0], drawing)
    assert drawn.shape == (2, 2, 64, 64, 3) and drawn.dtype == np.uint8
    for i, seed in enumerate((7, 8)):
        for j, prompt in enumerate(("red circles", "blue squares on black")):
            assert np.abs(drawn[i, j].astype(int) - _alone(model, prompt, seed, drawing)).max() <= 1


def test_sharing_changes_the_second_picture_only_and_each_pair_has_a_share_of_its_own(model: Any) -> None:
    drawing = Drawing(steps=4, cfg_scale=3.0, size=64)
    without = draw_pairs(model, "red circles", "blue squares", [7, 8], [0.0, 0.0], drawing)
    shared = draw_pairs(model, "red circles", "blue squares", [7, 8], [0.0, 1.0], drawing)
    different = [[int(np.abs(a.astype(int) - b).max()) for a, b in zip(*both)] for both in zip(without, shared)]
    assert different[0][0] <= 1 and different[0][1] <= 1 and different[1][0] <= 1
    assert different[1][1] > 1


def test_the_same_prompt_gives_the_same_picture_at_any_share(model: Any) -> None:
    drawn = draw_pairs(model, "red circles", "red circles", [1], [0.5], Drawing(steps=3, size=64))
    assert np.abs(drawn[0, 0].astype(int) - drawn[0, 1]).max() <= 1


def test_captions_longer_than_the_conditioning_are_cut(model: Any) -> None:
    places = token_places(model, "red circles " * 60, "blue circles " * 60)
    assert len(places) == 77
    drawn = draw_pairs(model, "red " * 120, world_triplet(0, 0).after, [1], [0.5], Drawing(steps=1, size=64))
    assert drawn.shape == (1, 2, 64, 64, 3)
