"""What FABRIC promises around the formula: off is off, nothing stays behind, repeats are identical, the cache changes
nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lib_methods.attention import intercept, self_attentions
from lib_methods.checks import SettingsError
from lib_methods.denoiser import Unsupported
from lib_methods.fabric.apply import attach
from lib_methods.fabric.attention import log_weights
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache, Features, reference_noise
from lib_methods.fabric.settings import FabricSettings
from lib_methods.hosts.bare import BareSampling, rows_of
from lib_methods.pictures.fit import crop_to_fill
from tests.fabric.small_model import Album, picture, small_unet

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(2))
ROWS = rows_of(2, 2)


@pytest.fixture(scope="module")
def unet():
    return small_unet()


def album_of(count: int) -> tuple[Album, list[str]]:
    album = Album()
    return album, [album.add(picture(i)) for i in range(count)]


def plain(unet) -> torch.Tensor:
    return BareSampling(unet).denoise(X, CONTEXT, ROWS)


def instance_overrides(unet) -> list[str]:
    return [name for name, module in unet.named_modules() if "forward" in module.__dict__]


def guided(unet, asked: FabricSettings, album: Album, cache: FeatureCache | None = None, **call) -> torch.Tensor:
    sampling = BareSampling(unet)
    attach(sampling, asked, album.load, cache or FeatureCache())
    return sampling.denoise(X, CONTEXT, ROWS, **call)


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 0.0},
        {"likes": ()},
        {"start": 0.0, "end": 0.0},
        {"start": 0.5, "end": 0.9},  # the call is step 0
        {"likes": (FeedbackImage("0" * 64, 0.0),)},
    ],
)
def test_off_is_bit_identical(unet, change) -> None:
    album, (one,) = album_of(1)
    album.pictures["0" * 64] = picture(3)
    asked = FabricSettings(**{"likes": (FeedbackImage(one),), **change})
    assert torch.equal(guided(unet, asked, album), plain(unet))


def test_nothing_stays_on_the_model(unet) -> None:
    album, (one,) = album_of(1)
    before = plain(unet)
    guided(unet, FabricSettings(likes=(FeedbackImage(one),)), album)
    assert instance_overrides(unet) == []
    assert torch.equal(plain(unet), before)


@pytest.mark.parametrize("where", ["reference pass", "denoiser call"])
def test_nothing_stays_after_an_exception_in_the_middle(unet, where) -> None:
    album, (one,) = album_of(1)
    sampling, cache = BareSampling(unet), FeatureCache()
    attach(sampling, FabricSettings(likes=(FeedbackImage(one),)), album.load, cache)
    if where == "denoiser call":
        sampling.denoise(X, CONTEXT, ROWS)  # fills the cache, so that the next failure hits the call itself

    def fail(*_):
        raise MemoryError("out of memory")

    broken = unet.mid_block.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        sampling.denoise(X, CONTEXT, ROWS)
    broken.remove()
    assert instance_overrides(unet) == []
    assert torch.equal(
        sampling.denoise(X, CONTEXT, ROWS), guided(unet, FabricSettings(likes=(FeedbackImage(one),)), album)
    )


def test_repeats_and_cache_hits_are_bit_identical(unet) -> None:
    album, ids = album_of(3)
    asked = FabricSettings(likes=tuple(map(FeedbackImage, ids[:2])), dislikes=(FeedbackImage(ids[2]),))
    cache = FeatureCache()
    first = guided(unet, asked, album, cache)
    torch.manual_seed(1234)  # the global generator has no say
    sampling = BareSampling(unet)
    attach(sampling, asked, album.load, cache)
    assert torch.equal(sampling.denoise(X, CONTEXT, ROWS), first)
    assert sampling.unet_runs == []  # no reference pass was needed
    assert torch.equal(guided(unet, asked, album), first)


def steps(sampling: BareSampling, levels: Iterable[float]) -> list[torch.Tensor]:
    """One denoiser call at each of these noise levels."""
    return [sampling.denoise(X, CONTEXT, ROWS, level=level, step=step) for step, level in enumerate(levels)]


@pytest.mark.parametrize("cache_limit_mb", [0, 1024])
@pytest.mark.parametrize(("reference_levels", "passes"), [("six", 5), ("every step", 16), ("one", 1)])
def test_images_are_read_at_few_levels_whatever_the_cache_holds(
    unet, reference_levels: str, passes: int, cache_limit_mb: int
) -> None:
    album, ids = album_of(2)
    asked = FabricSettings(
        likes=tuple(map(FeedbackImage, ids)), reference_levels=reference_levels, cache_limit_mb=cache_limit_mb
    )
    levels, cache, made = np.geomspace(14.6, 0.03, 20), FeatureCache(), []
    for expected in (passes, passes if cache_limit_mb == 0 else 0):
        sampling = BareSampling(unet, steps=20)
        attach(sampling, asked, album.load, cache)
        made.append(steps(sampling, levels))
        assert len(sampling.unet_runs) == expected
    without = BareSampling(unet, steps=20)
    attach(without, replace(asked, cache_limit_mb=1024 - cache_limit_mb), album.load, FeatureCache())
    made.append(steps(without, levels))
    assert all(torch.equal(one, other) for one, *others in zip(*made) for other in others)


def test_other_steps_and_samplers_find_the_features_of_the_fixed_levels(unet) -> None:
    album, (one,) = album_of(1)
    asked, cache = FabricSettings(likes=(FeedbackImage(one),), end=1.0), FeatureCache()
    first = BareSampling(unet, steps=20)
    attach(first, asked, album.load, cache)
    steps(first, np.geomspace(14.6, 0.03, 20))
    second = BareSampling(unet, steps=7)
    attach(second, asked, album.load, cache)
    steps(second, np.linspace(11.0, 0.04, 7))
    assert second.unet_runs == []


def test_reference_images_go_through_the_unet_in_one_batch_for_all_slices(unet) -> None:
    album, ids = album_of(5)
    asked = FabricSettings(likes=tuple(map(FeedbackImage, ids[:3])), dislikes=tuple(map(FeedbackImage, ids[2:])))
    sampling = BareSampling(unet)
    attach(sampling, asked, album.load, FeatureCache())
    sampling.denoise(X, CONTEXT, ROWS, slices=1)
    assert sampling.unet_runs == [5]


def test_the_order_of_the_likes_and_doubles_change_nothing(unet) -> None:
    album, ids = album_of(3)
    likes = [FeedbackImage(i) for i in ids]
    forwards = guided(unet, FabricSettings(likes=tuple(likes)), album)
    backwards = guided(unet, FabricSettings(likes=tuple(reversed(likes))), album)
    doubled = guided(unet, FabricSettings(likes=tuple(likes + likes[:1])), album)
    assert torch.allclose(forwards, backwards, atol=1e-6)
    assert torch.equal(forwards, doubled)


def test_likes_leave_uncond_rows_alone_and_dislikes_cond_rows(unet) -> None:
    album, (one,) = album_of(1)
    likes = guided(unet, FabricSettings(likes=(FeedbackImage(one),)), album)
    dislikes = guided(unet, FabricSettings(dislikes=(FeedbackImage(one),)), album)
    off = plain(unet)
    assert torch.allclose(likes[2:], off[2:], atol=1e-6)
    assert torch.allclose(dislikes[:2], off[:2], atol=1e-6)
    assert (likes[:2] - off[:2]).abs().max() > 1e-3
    assert (dislikes[2:] - off[2:]).abs().max() > 1e-3


def test_feedback_does_not_depend_on_batch_size(unet) -> None:
    album, (one,) = album_of(1)
    asked = FabricSettings(likes=(FeedbackImage(one),))
    sampling = BareSampling(unet)
    attach(sampling, asked, album.load, FeatureCache())
    alone = sampling.denoise(X[:1], CONTEXT[:1], rows_of(1, 0))
    assert torch.allclose(alone, guided(unet, asked, album)[:1], atol=1e-5)


@given(
    st.lists(st.floats(0.0, 4.0), min_size=1, max_size=8),
    st.floats(0.01, 2.0),
    st.sampled_from([16, 64, 256]),
    st.sampled_from([16, 64, 256]),
    st.booleans(),
)
def test_the_shared_budget_is_that_of_one_image(weights, strength, own, full, half) -> None:
    stored = full // 4 if half else full
    logs = log_weights(weights, strength, shared=True, own_tokens=own, stored_tokens=stored, full_tokens=full)
    counted = [w for w in weights if w > 0]
    mass = sum(math.exp(w) * stored for w in logs)  # against own tokens of weight 1 each
    assert mass == pytest.approx(strength * own * (sum(counted) / len(counted) if counted else 0), rel=1e-6)


@given(st.integers(1, 8), st.floats(0.01, 2.0))
def test_as_published_every_image_counts_in_full(count, strength) -> None:
    logs = log_weights([1.0] * count, strength, shared=False, own_tokens=64, stored_tokens=64, full_tokens=64)
    assert [math.exp(w) for w in logs] == pytest.approx([strength] * count)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 12), st.integers(1, 12))
def test_crop_to_fill_leaves_no_margin(width, height, across, down) -> None:
    image = Image.new("RGB", (width, height), (200, 100, 50))
    result = crop_to_fill(image, across * 8, down * 8)
    assert result.size == (across * 8, down * 8)
    assert (np.asarray(result) == (200, 100, 50)).all()


@pytest.mark.parametrize("size", [(512, 768), (768, 512)])
def test_crop_to_fill_keeps_the_middle_and_the_aspect(size) -> None:
    image = Image.new("RGB", (900, 900), "black")
    image.paste((255, 255, 255), (350, 350, 550, 550))  # a white square in the middle must stay a square
    white = np.asarray(crop_to_fill(image, *size))[..., 0] > 127
    rows, cols = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    assert abs(len(rows) - len(cols)) <= 2
    assert abs(rows.mean() - (size[1] - 1) / 2) <= 1
    assert abs(cols.mean() - (size[0] - 1) / 2) <= 1


def test_noise_belongs_to_the_image_and_the_seed() -> None:
    noise = reference_noise("a" * 64, 0, (4, 8, 8))
    assert torch.equal(noise, reference_noise("a" * 64, 0, (4, 8, 8)))
    assert not torch.equal(noise, reference_noise("b" * 64, 0, (4, 8, 8)))
    assert not torch.equal(noise, reference_noise("a" * 64, 1, (4, 8, 8)))


def features(megabytes: int) -> Features:
    return Features({"layer": torch.zeros(megabytes << 18)}, {"layer": 1})


def test_a_full_cache_gives_up_other_groups_first_and_then_keeps_what_it_has() -> None:
    cache, limit = FeatureCache(), 4 << 20
    assert cache.put("old", 1.0, features(2), limit)
    assert cache.put("new", 1.0, features(2), limit)
    assert cache.put("new", 2.0, features(2), limit)  # the old group goes
    assert cache.get("old", 1.0) is None
    assert not cache.put("new", 3.0, features(2), limit)  # walking on must not drop what comes next
    assert cache.get("new", 1.0) is not None
    assert cache.size <= limit


def test_another_checkpoint_empties_the_cache() -> None:
    cache = FeatureCache()
    cache.use_model("a")
    cache.put("group", 1.0, features(1), 4 << 20)
    cache.use_model("a")
    assert cache.size
    cache.use_model("b")
    assert cache.size == 0


def test_a_lora_does_not_see_features_of_the_bare_model(unet) -> None:
    album, (one,) = album_of(1)
    asked, cache = FabricSettings(likes=(FeedbackImage(one),)), FeatureCache()
    guided(unet, asked, album, cache)
    sampling = BareSampling(unet)
    sampling.model_key = lambda: ("model", "a lora")  # type: ignore[method-assign]
    attach(sampling, asked, album.load, cache)
    sampling.denoise(X, CONTEXT, ROWS)
    assert sampling.unet_runs == [1]


def test_a_unet_without_reachable_attention_is_refused_with_a_sentence() -> None:
    album, (one,) = album_of(1)
    sampling = BareSampling.__new__(BareSampling)
    sampling.unet, sampling.is_hires = nn.Sequential(nn.Conv2d(4, 4, 1)), False
    with pytest.raises(Unsupported, match="no self-attention"):
        attach(sampling, FabricSettings(likes=(FeedbackImage(one),)), album.load, FeatureCache())


def test_overrides_of_two_extensions_may_leave_in_any_order() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    want = layer(x)

    def twice(original, hidden, /, *args, **kwargs):
        return original(hidden) * 2

    ours, theirs = intercept([(layer, twice)]), intercept([(layer, twice)])
    ours.__enter__()
    theirs.__enter__()
    assert torch.equal(layer(x), want * 4)
    ours.__exit__(None, None, None)  # the outer one is still there and calls into ours
    assert torch.equal(layer(x), want * 2)
    theirs.__exit__(None, None, None)
    assert torch.equal(layer(x), want)


def test_every_self_attention_is_found_and_no_cross_attention(unet) -> None:
    found = self_attentions(unet)
    names = {name for name, _ in unet.named_modules() if name.endswith(".attn1")}
    assert {layer.name for layer in found} == names
    assert len(names) == 7


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"strength": float("nan")}, "Strength"),
        ({"strength": -1}, "Strength"),
        ({"strength": "much"}, "Strength"),
        ({"start": 0.9, "end": 0.1}, "Start"),
        ({"weighting": "loud"}, "Weighting"),
        ({"hires": True}, "Hires"),
        ({"cache_limit_mb": -5}, "Cache"),
    ],
)
def test_bad_settings_are_refused_in_the_users_words(change, word) -> None:
    with pytest.raises(SettingsError, match=word):
        FabricSettings(**change)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "C:\\x.png", "", "a" * 15, "a" * 65, "A" * 64, "a" * 64 + "\n", None, 7]
)
def test_an_image_is_named_by_its_hash_alone(name) -> None:
    with pytest.raises(SettingsError, match="hash"):
        FeedbackImage(name)


@given(st.integers(1, 150), st.floats(0, 1), st.floats(0, 1))
def test_guided_steps_are_an_interval_of_the_steps(steps, one, two) -> None:
    asked = FabricSettings(likes=(FeedbackImage("0" * 64),), start=min(one, two), end=max(one, two), min_strength=0.1)
    first, last = asked.guided_steps(steps)
    assert 0 <= first <= last <= steps
    strengths = [asked.strength_at(step, steps) for step in range(steps)]
    assert strengths == [0.8 if first <= step < last else 0.1 for step in range(steps)]
    assert str(last) in asked.describe(steps) or first == last


def test_the_plain_line_says_what_happens() -> None:
    one, two, three = (FeedbackImage(f"{i:064x}") for i in range(3))
    line = FabricSettings(likes=(one, two), dislikes=(three,)).describe(20)
    assert line == "2 likes, 1 dislike, steps 1-16 of 20, strength 0.8 shared"
