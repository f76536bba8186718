"""Buckets, and the order in which images come."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from lib_methods.dreambooth.photos.image import (
    Photo,
    bucket_for,
    bucket_sizes,
    fit,
    fit_mask,
    fit_warnings,
    micro_conditioning,
    step_for,
)
from lib_methods.dreambooth.training.batches import Example, Order, Shape, TrainingData
from lib_methods.errors import UserError
from lib_methods.pictures.fit import to_tensor
from tests.dreambooth.models import picture

sides = st.integers(16, 6000)
resolutions = st.sampled_from([32, 64, 96, 256, 512, 520, 640, 768, 1024])


@given(width=sides, height=sides, resolution=resolutions)
def test_a_bucket_has_about_the_area_and_never_more(width: int, height: int, resolution: int) -> None:
    w, h = bucket_for(width, height, resolution)
    step = step_for(resolution)
    assert w % step == 0 and h % step == 0
    assert 0.7 * resolution**2 <= w * h <= resolution**2 or resolution < 128
    assert resolution // 2 - step < min(w, h) and max(w, h) <= 2 * resolution


@given(width=sides, height=sides, resolution=resolutions)
def test_no_other_bucket_is_nearer_in_shape(width: int, height: int, resolution: int) -> None:
    chosen = bucket_for(width, height, resolution)

    def off(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert off(chosen) <= min(map(off, bucket_sizes(resolution))) + 1e-6


@given(width=sides, height=sides, resolution=resolutions)
def test_turning_a_picture_turns_its_bucket(width: int, height: int, resolution: int) -> None:
    w, h = bucket_for(width, height, resolution)
    turned = bucket_for(height, width, resolution)
    assert w * h == turned[0] * turned[1]
    assert sorted(turned) == sorted((w, h))


@given(side=sides, resolution=resolutions)
def test_squares_stay_square(side: int, resolution: int) -> None:
    w, h = bucket_for(side, side, resolution)
    assert w == h == resolution // step_for(resolution) * step_for(resolution)


def test_known_sizes() -> None:
    assert bucket_for(4000, 3000, 512) == (576, 448)
    assert bucket_for(3000, 4000, 512) == (448, 576)
    assert bucket_for(1920, 1080, 1024) == (1344, 768)
    assert bucket_for(90, 60, 64) == (72, 48) or bucket_for(90, 60, 64) == (80, 48)
    assert step_for(64) == 8 and step_for(512) == 64 and step_for(1024) == 64


@pytest.mark.parametrize("bad", [(0, 5, 512), (5, 0, 512), (5, 5, 4), (5, 5, 0)])
def test_sizes_that_are_none_are_errors(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        bucket_for(*bad)


def test_a_picture_of_the_buckets_size_is_not_touched() -> None:
    image = picture(64, 48)
    assert torch.equal(fit(image, (64, 48)), to_tensor(image))
    assert micro_conditioning(64, 48, (64, 48)).tolist() == [48, 64, 0, 0, 48, 64]


@given(width=st.integers(16, 200), height=st.integers(16, 200))
def test_fitted_pictures_have_the_buckets_size_and_range(width: int, height: int) -> None:
    bucket = bucket_for(width, height, 64)
    pixels = fit(picture(width, height), bucket)
    mask = fit_mask(Image.new("L", (7, 9), 255), width, height, bucket)
    sizes = micro_conditioning(width, height, bucket)
    assert pixels.shape == (3, bucket[1], bucket[0]) and pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1
    assert mask.shape == (1, bucket[1], bucket[0]) and torch.equal(mask, torch.ones_like(mask))
    assert sizes.shape == (6,) and sizes[4:].tolist() == [bucket[1], bucket[0]]


def test_the_middle_is_kept_and_the_mask_goes_with_it() -> None:
    image = Image.new("RGB", (300, 100))
    image.paste((255, 255, 255), (100, 0, 200, 100))
    pixels = fit(image, (64, 64))
    mask = fit_mask(image.convert("L").resize((150, 50)), 300, 100, (64, 64))
    assert pixels[:, 4:-4, 4:-4].min() > 0.99
    assert mask[:, 4:-4, 4:-4].min() > 0.99
    assert micro_conditioning(300, 100, (64, 64)).tolist() == [100, 300, 0, 64, 64, 64]


@given(width=sides, height=sides, resolution=resolutions)
def test_the_crop_that_sdxl_is_told_lies_inside_the_resized_picture(width: int, height: int, resolution: int) -> None:
    w, h = bucket_for(width, height, resolution)
    original_h, original_w, top, left, target_h, target_w = micro_conditioning(width, height, (w, h)).tolist()
    scale = max(w / width, h / height)
    assert (original_h, original_w, target_h, target_w) == (height, width, h, w)
    assert 0 <= top and top + h <= height * scale + 1e-3
    assert 0 <= left and left + w <= width * scale + 1e-3
    assert min(top, left) == 0


def photo(width: int, height: int) -> Photo:
    return Photo(Path("dir") / "a.jpg", None, None, width, height)


@given(width=st.integers(16, 1500), height=st.integers(16, 1500))
def test_enlarging_is_never_silent(width: int, height: int) -> None:
    bucket = bucket_for(width, height, 512)
    enlarged = bucket[0] > width or bucket[1] > height
    assume(max(width / height, height / width) < 3)
    notes = fit_warnings([photo(width, height)], [bucket])
    assert any("upscaled" in note for note in notes) == enlarged
    assert all("a.jpg" in note and "dir" not in note for note in notes)


def test_a_panorama_is_warned_of() -> None:
    (note,) = fit_warnings([photo(8000, 1000)], [bucket_for(8000, 1000, 512)])
    assert "cut" in note and "50 %" in note
    assert fit_warnings([photo(1000, 1000)], [(512, 512)]) == []


shapes = st.lists(st.sampled_from([(8, 8), (6, 10), (10, 6)]), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


def example(shape: Shape = (8, 8), value: float = 0.0, text: str = "a ohwx dog") -> Example:
    mean = torch.full((4, *shape), value)
    return Example(mean, torch.ones_like(mean), None, torch.zeros(6), text)


def data(photos: Sequence[Shape], prior: Sequence[Shape] = ()) -> TrainingData:
    return TrainingData([example(shape) for shape in photos], [example(shape) for shape in prior])


@given(photos=shapes, seed=seeds, batch=st.integers(1, 5))
def test_every_batch_is_full_and_of_one_shape(photos: list[Shape], seed: int, batch: int) -> None:
    order = Order(data(photos), seed)
    for _ in range(12):
        indices = order.next_batch(batch)
        assert len(indices) == batch
        assert len({photos[index] for index in indices}) == 1


@given(photos=shapes, seed=seeds, batch=st.integers(1, 5))
def test_within_a_shape_every_photo_comes_once_an_epoch(photos: list[Shape], seed: int, batch: int) -> None:
    order = Order(data(photos), seed)
    streams: dict[Shape, list[int]] = {}
    for _ in range(20):
        indices = order.next_batch(batch)
        streams.setdefault(photos[indices[0]], []).extend(indices)
    for shape, stream in streams.items():
        members = [index for index, other in enumerate(photos) if other == shape]
        for start in range(0, len(stream) - len(members) + 1, len(members)):
            assert sorted(stream[start : start + len(members)]) == members


@given(photos=shapes, seed=seeds)
def test_one_by_one_every_photo_comes_once_an_epoch(photos: list[Shape], seed: int) -> None:
    order = Order(data(photos), seed)
    for _ in range(3):
        assert sorted(order.next_batch(1)[0] for _ in photos) == list(range(len(photos)))


@given(photos=shapes, seed=seeds, batch=st.integers(1, 4))
def test_in_the_long_run_photos_are_seen_equally_often(photos: list[Shape], seed: int, batch: int) -> None:
    order = Order(data(photos), seed)
    seen = Counter(index for _ in range(100) for index in order.next_batch(batch))
    counts = [seen[index] for index in range(len(photos))]
    # a shape may be ahead by one batch over its photos, and a photo by one epoch
    assert max(counts) - min(counts) <= batch + 1


@given(photos=shapes, seed=seeds, before=st.integers(0, 15), sizes=st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_it_goes_on_from_any_place_bit_exactly(photos: list[Shape], seed: int, before: int, sizes: list[int]) -> None:
    everything = data(photos, [*photos, *photos, (8, 8)])

    def take(order: Order) -> list[list[int]]:
        taken = []
        for size in sizes:
            taken.append(order.next_batch(size))
            taken.append(order.next_prior(photos[taken[-1][0]], size))
        return taken

    order = Order(everything, seed)
    for step in range(before):
        shape = photos[order.next_batch(1 + step % 3)[0]]
        order.next_prior(shape, 2)
    saved = json.loads(json.dumps(order.state()))
    expected = take(order)
    fresh = Order(everything, seed)
    fresh.restore(saved)
    assert take(fresh) == expected
    order.restore(saved)
    assert take(order) == expected


def test_the_order_is_the_same_in_every_version() -> None:
    order = Order(data([(8, 8)] * 4 + [(6, 10)] * 2, [(8, 8)] * 3 + [(6, 10)] * 2), 1234)
    assert [order.next_batch(2) for _ in range(6)] == [[3, 0], [4, 5], [1, 2], [4, 5], [0, 2], [1, 3]]
    assert order.next_prior((8, 8), 6) == [1, 2, 0, 2, 1, 0]


def test_seeds_and_epochs_give_other_orders() -> None:
    eight = data([(8, 8)] * 8)
    first = [Order(eight, seed).next_batch(8) for seed in range(10)]
    assert len(set(map(tuple, first))) > 5
    order = Order(eight, 0)
    assert len({tuple(order.next_batch(8)) for _ in range(10)}) > 5


@given(photos=shapes, n=st.integers(1, 9), seed=seeds)
def test_class_pictures_are_of_the_batchs_shape_and_drawn_alike(photos: list[Shape], n: int, seed: int) -> None:
    prior = [*photos, *photos, (8, 8)]
    order = Order(data(photos, prior), seed)
    for shape in set(photos):
        members = [index for index, other in enumerate(prior) if other == shape]
        stream = [index for _ in range(len(members)) for index in order.next_prior(shape, n)]
        assert Counter(stream) == Counter(members * n)


def test_processes_share_a_batch_without_meeting() -> None:
    whole = Order(data([(8, 8)] * 6), 3)
    batch = whole.next_batch(4)
    assert sorted(batch[0::2] + batch[1::2]) == sorted(batch) and len(set(batch)) == 4


def test_there_is_no_training_without_photos_and_no_prior_of_other_sizes() -> None:
    with pytest.raises(UserError, match="no photos"):
        data([])
    with pytest.raises(UserError, match="size"):
        data([(8, 8), (6, 10)], [(8, 8)])
    with pytest.raises(UserError, match="no class images"):
        Order(data([(8, 8)]), 0).next_prior((8, 8), 1)
    with pytest.raises(ValueError):
        Order(data([(8, 8)]), 0).next_batch(0)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"photos 8x8": -1},
        {"photos 8x8": 1.5},
        {"photos 8x8": True},
        {"photos 8x8": None},
        {"photos 6x6": 0},
    ],
)
def test_a_place_in_other_or_damaged_data_is_refused_and_changes_nothing(change: dict) -> None:
    order = Order(data([(8, 8)] * 3), 1)
    order.next_batch(2)
    before = order.state()
    with pytest.raises(UserError):
        order.restore({**before, **change})
    assert order.state() == before
    with pytest.raises(UserError):
        Order(data([(6, 10)]), 1).restore(before)


def test_the_fingerprint_is_that_of_the_content() -> None:
    one = TrainingData([example(value=1)], [example()])
    assert one.fingerprint() == TrainingData([example(value=1)], [example()]).fingerprint()
    mask = dataclasses.replace(example(value=1), mask=torch.ones(1, 8, 8))
    others = [
        TrainingData([example(value=2)], [example()]),
        TrainingData([example(value=1, text="a dog")], [example()]),
        TrainingData([example(value=1)]),
        TrainingData([example(value=1), example()]),
        TrainingData([mask], [example()]),
        TrainingData([example()], [example(value=1)]),
    ]
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 7
