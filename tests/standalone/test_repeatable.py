"""One request gives one picture, whatever the batch and whatever ran before; another prompt gives another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.standalone.pictures import SAMPLERS, pixels

# a batch sums the same numbers in another order than single images do: equal up to rounding
ROUNDING = 1e-5


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= ROUNDING * a.abs().max().clamp(min=1))


# -- the same request, the same picture


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sd1: Any, sampler: str) -> None:
    override = {"eta_ddim": 0.5}
    batch = sd1.latents(sampler_name=sampler, seed=5, batch_size=3, override_settings=override)
    for index in range(3):
        single = sd1.latents(sampler_name=sampler, seed=5 + index, override_settings=override)
        assert close(batch[index : index + 1], single)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_global_generator_has_no_part(sd1: Any, sampler: str) -> None:
    torch.manual_seed(1)
    first = sd1.latents(sampler_name=sampler, subseed=3)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(sd1.latents(sampler_name=sampler, subseed=3), first)


def test_batches_and_batch_size_give_the_same_images(sd1: Any) -> None:
    one = sd1.generate(batch_size=4)
    other = sd1.generate(batch_size=2, n_iter=2)
    assert one.all_seeds == other.all_seeds == [1, 2, 3, 4]
    for a, b in zip(one.images, other.images):
        assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_variation_seeds_move_the_noise(sd1: Any) -> None:
    def start(**fields: Any) -> torch.Tensor:
        from modules import rng

        return rng.ImageRNG((4, 8, 8), [1, 1], **fields).next()

    plain, other = start(), start(subseeds=[9, 9], subseed_strength=1.0)
    assert torch.equal(start(subseeds=[9, 9], subseed_strength=0.0), plain)
    between = start(subseeds=[9, 9], subseed_strength=0.3)
    assert (between - plain).norm() < (between - other).norm()
    assert 0.9 < float(between.std()) < 1.1
    result = sd1.generate(subseed=9, subseed_strength=0.3, batch_size=2)
    assert result.all_seeds == [1, 1]
    assert result.all_subseeds == [9, 10]
    assert "Variation seed: 9, Variation seed strength: 0.3" in result.infotexts[0]


def test_seed_resize_keeps_the_middle_of_the_noise(sd1: Any) -> None:
    from modules import rng

    small = rng.ImageRNG((4, 8, 8), [3]).next()
    large = rng.ImageRNG((4, 12, 10), [3], seed_resize_from_h=64, seed_resize_from_w=64).next()
    assert torch.equal(large[:, :, 2:10, 1:9], small)
    cut = rng.ImageRNG((4, 6, 8), [3], seed_resize_from_h=64, seed_resize_from_w=64).next()
    assert torch.equal(cut, small[:, :, 1:7, :])


# -- prompts that change the picture


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red:1.9) circle",
        "a red square",
        "a [red:blue:0.5] circle",
        "a [red|blue] circle",
        "a red circle AND a square",
        "a red circle :0.3",
        "a red BREAK circle",
    ],
)
def test_prompts_matter(sd1: Any, prompt: str) -> None:
    assert not torch.allclose(sd1.latents(prompt=prompt), sd1.latents(prompt="a red circle"), atol=1e-6)


def test_clip_skip_matters_and_is_written_down(sd1: Any) -> None:
    override = {"CLIP_stop_at_last_layers": 2}
    assert not torch.equal(sd1.latents(override_settings=override), sd1.latents())
    assert "Clip skip: 2" in sd1.generate(override_settings=override).info


def test_lists_of_prompts_and_seeds(sd1: Any) -> None:
    result = sd1.generate(prompt=["a", "b"], negative_prompt="x", seed=[5, 9], batch_size=2)
    assert result.all_prompts == ["a", "b"]
    assert result.all_seeds == [5, 9]
    assert torch.allclose(
        sd1.latents(prompt=["a", "b"], seed=[5, 9], batch_size=2)[1:], sd1.latents(prompt="b", seed=9), atol=1e-4
    )


def test_nv_is_the_noise_of_an_nvidia_gpu(sd1: Any) -> None:
    from modules import shared
    from standalone.host.sampling import rng

    # Random123's known answer for the counter and the key 0
    words = rng.philox4x32(np.zeros((4, 1), dtype=np.uint32), (0, 0))[:, 0]
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    # torch.manual_seed(0); torch.randn(3, 4, device="cuda")
    expected = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284]
    shared.opts.randn_source = "NV"
    assert torch.allclose(rng.randn(0, (3, 4)).flatten()[:8], torch.tensor(expected), atol=1e-4)
    nv = {"randn_source": "NV"}
    shared.opts.randn_source = "CPU"
    assert not torch.equal(sd1.latents(override_settings=nv), sd1.latents())
    assert torch.equal(sd1.latents(override_settings=nv), sd1.latents(override_settings=nv))
    assert "RNG: NV" in sd1.generate(override_settings=nv).info
