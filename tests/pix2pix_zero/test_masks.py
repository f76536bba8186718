"""Masks: where a word attends, what was painted, and how both are shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps, WordAttention, normalised, overlay, threshold, word_share
from tests.pix2pix_zero.bare import diffusers_unet, latents, predict, prompts


def maps_of_a_square(size: int = 8, heads: int = 2, tokens: int = 5, word: int = 3) -> Maps:
    """Layers of two sizes whose upper left quarter attends to one token and the rest to the first one."""
    by_layer = {}
    for name, side in (("large", size), ("small", size // 2)):
        maps = torch.zeros(1, heads, side, side, tokens)
        maps[..., 0] = 1
        corner = maps[:, :, : side // 2, : side // 2]
        corner[..., 0], corner[..., word] = 0.25, 0.75
        by_layer[name] = maps.flatten(2, 3)
    return Maps(by_layer, (size, size))


def test_a_word_is_seen_where_it_attends() -> None:
    maps = maps_of_a_square()
    share = word_share(maps, [3])
    assert share.shape == (1, 1, 8, 8) and float(share[0, 0, 0, 0]) == pytest.approx(0.75)
    assert float(share[0, 0, -1, -1]) == 0
    assert torch.allclose(word_share(maps, [0, 3])[0, 0, 0, 0], torch.ones(()))  # the tokens of a word add up
    attention = WordAttention([3])
    attention.add(maps)
    attention.add(maps)
    mask = threshold(attention.heat(), 0.5)
    wanted = torch.zeros(1, 1, 8, 8)
    wanted[..., :4, :4] = 1
    assert torch.equal(mask, wanted)
    grown = threshold(attention.heat(), 0.5, grow=1)
    assert grown.sum() == 25 and grown[..., :5, :5].min() == 1


def test_steps_count_alike() -> None:
    first, second = WordAttention([3]), WordAttention([3])
    here, nowhere = maps_of_a_square(), maps_of_a_square(word=2)
    for maps in (here, nowhere):
        first.add(maps)
    for maps in (nowhere, here):
        second.add(maps)
    assert torch.allclose(first.heat(), second.heat()) and first.steps == 2


def test_the_maps_of_a_unet_of_any_aspect() -> None:
    unet = diffusers_unet()
    recorder = MapRecorder(unet, (8, 12))
    with torch.no_grad(), recorder.installed():
        maps = recorder.run_to_last(lambda: predict(unet, latents(2, 8, 12), prompts(2)))
    attention = WordAttention([1, 2])
    attention.add(maps)
    heat = attention.heat()
    assert heat.shape == (2, 1, 8, 12) and heat.dtype == torch.float32
    assert torch.equal(heat.amin((1, 2, 3)), torch.zeros(2)) and torch.equal(heat.amax((1, 2, 3)), torch.ones(2))
    every = word_share(maps, range(7))
    assert torch.allclose(every, torch.ones(()), atol=1e-5)


def test_merged_tokens_are_refused_in_a_sentence() -> None:
    odd = Maps({"layer": torch.rand(1, 1, 13, 5)}, (8, 8))
    with pytest.raises(Unsupported, match="token merging"):
        word_share(odd, [1])


@pytest.mark.parametrize("positions", [[], [5], [-1], [3, 99]])
def test_a_word_outside_of_the_caption_is_told(positions: list[int]) -> None:
    with pytest.raises(Unsupported, match="caption"):
        word_share(maps_of_a_square(), positions)


def test_without_maps_there_is_no_mask() -> None:
    with pytest.raises(ValueError, match="no maps"):
        WordAttention([1]).heat()


def test_a_word_that_attends_alike_everywhere_masks_nothing() -> None:
    share = torch.stack([torch.full((1, 4, 4), 0.013), torch.linspace(0, 0.1, 16).view(1, 4, 4)])
    heat = normalised(share)
    assert torch.equal(heat[0], torch.ones(1, 4, 4))
    assert heat[1].min() == 0 and heat[1].max() == 1


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_masks_keep_their_range_and_shape(rows: int, height: int, width: int, level: float, grow: int) -> None:
    heat = normalised(torch.rand(rows, 1, height, width))
    mask = threshold(heat, level, grow)
    assert mask.shape == heat.shape and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask >= threshold(heat, level)).all()


def test_the_overlay_shows_the_mask_and_leaves_the_rest() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    mask = torch.zeros(1, 1, 5, 7)
    assert np.array_equal(np.asarray(overlay(picture, mask)), noise)
    mask[..., :2] = 1
    shown = np.asarray(overlay(picture, mask, 1.0))
    assert shown.shape == noise.shape
    assert np.array_equal(shown[:, 30:], noise[:, 30:])
    assert np.ptp(shown[:, :8].reshape(-1, 3), axis=0).max() == 0  # covered in one colour
    assert overlay(picture.convert("RGBA"), mask[0, 0], 0.5).mode == "RGB"
    bad = torch.full((5, 7), float("nan"))
    assert np.array_equal(np.asarray(overlay(picture, bad)), noise)
    with pytest.raises(ValueError, match="one mask"):
        overlay(picture, torch.zeros(2, 1, 5, 7))
