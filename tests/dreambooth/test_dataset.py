"""The order of a training's data: fair, of one shape a batch, and the same again from any place."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.training.data import Example, Order, Shape, TrainingData

shapes = st.lists(st.sampled_from([(8, 8), (6, 10), (10, 6)]), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


def example(shape: Shape = (8, 8), value: float = 0.0, text: str = "a ohwx dog") -> Example:
    mean = torch.full((4, *shape), value)
    return Example(mean, torch.ones_like(mean), None, torch.zeros(6), text)


def data(photos: Sequence[Shape], prior: Sequence[Shape] = ()) -> TrainingData:
    return TrainingData([example(shape) for shape in photos], [example(shape) for shape in prior])


@settings(deadline=None)
@given(photos=shapes, seed=seeds, batch=st.integers(1, 5))
def test_every_batch_is_full_and_of_one_shape(photos: list[Shape], seed: int, batch: int) -> None:
    order = data(photos).order(seed)
    for _ in range(12):
        indices = order.next_batch(batch)
        assert len(indices) == batch
        assert len({photos[index] for index in indices}) == 1


@settings(deadline=None)
@given(photos=shapes, seed=seeds, batch=st.integers(1, 5))
def test_within_a_shape_every_photo_comes_once_an_epoch(photos: list[Shape], seed: int, batch: int) -> None:
    order = data(photos).order(seed)
    streams: dict[Shape, list[int]] = {}
    for _ in range(20):
        indices = order.next_batch(batch)
        streams.setdefault(photos[indices[0]], []).extend(indices)
    for shape, stream in streams.items():
        members = [index for index, other in enumerate(photos) if other == shape]
        for start in range(0, len(stream) - len(members) + 1, len(members)):
            assert sorted(stream[start : start + len(members)]) == members


@settings(deadline=None)
@given(photos=shapes, seed=seeds)
def test_one_by_one_every_photo_comes_once_an_epoch(photos: list[Shape], seed: int) -> None:
    order = data(photos).order(seed)
    for _ in range(3):
        assert sorted(order.next_batch(1)[0] for _ in photos) == list(range(len(photos)))


@settings(deadline=None)
@given(photos=shapes, seed=seeds, batch=st.integers(1, 4))
def test_in_the_long_run_photos_are_seen_equally_often(photos: list[Shape], seed: int, batch: int) -> None:
    order = data(photos).order(seed)
    seen = Counter(index for _ in range(100) for index in order.next_batch(batch))
    counts = [seen[index] for index in range(len(photos))]
    # a shape may be ahead by one batch over its photos, and a photo by one epoch
    assert max(counts) - min(counts) <= batch + 1


@settings(deadline=None)
@given(photos=shapes, seed=seeds, before=st.integers(0, 15), sizes=st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_it_goes_on_from_any_place_bit_exactly(photos: list[Shape], seed: int, before: int, sizes: list[int]) -> None:
    everything = data(photos, [*photos, *photos, (8, 8)])

    def take(order: Order) -> list[list[int]]:
        taken = []
        for size in sizes:
            taken.append(order.next_batch(size))
            taken.append(order.next_prior(photos[taken[-1][0]], size))
        return taken

    order = everything.order(seed)
    for step in range(before):
        shape = photos[order.next_batch(1 + step % 3)[0]]
        order.next_prior(shape, 2)
    saved = json.loads(json.dumps(order.state()))
    expected = take(order)
    fresh = everything.order(seed)
    fresh.restore(saved)
    assert take(fresh) == expected
    order.restore(saved)
    assert take(order) == expected


def test_the_order_is_the_same_in_every_version() -> None:
    order = data([(8, 8)] * 4 + [(6, 10)] * 2, [(8, 8)] * 3 + [(6, 10)] * 2).order(1234)
    assert [order.next_batch(2) for _ in range(6)] == [[3, 0], [4, 5], [1, 2], [4, 5], [0, 2], [1, 3]]
    assert order.next_prior((8, 8), 6) == [1, 2, 0, 2, 1, 0]


def test_seeds_and_epochs_give_other_orders() -> None:
    eight = data([(8, 8)] * 8)
    first = [eight.order(seed).next_batch(8) for seed in range(10)]
    assert len(set(map(tuple, first))) > 5
    order = eight.order(0)
    assert len({tuple(order.next_batch(8)) for _ in range(10)}) > 5


@settings(deadline=None)
@given(photos=shapes, n=st.integers(1, 9), seed=seeds)
def test_class_pictures_are_of_the_batchs_shape_and_drawn_alike(photos: list[Shape], n: int, seed: int) -> None:
    prior = [*photos, *photos, (8, 8)]
    order = data(photos, prior).order(seed)
    for shape in set(photos):
        members = [index for index, other in enumerate(prior) if other == shape]
        stream = [index for _ in range(len(members)) for index in order.next_prior(shape, n)]
        assert Counter(stream) == Counter(members * n)


def test_processes_share_a_batch_without_meeting() -> None:
    whole = data([(8, 8)] * 6).order(3)
    batch = whole.next_batch(4)
    assert sorted(batch[0::2] + batch[1::2]) == sorted(batch) and len(set(batch)) == 4


def test_there_is_no_training_without_photos_and_no_prior_of_other_sizes() -> None:
    with pytest.raises(DreamBoothError, match="no photos"):
        data([])
    with pytest.raises(DreamBoothError, match="size"):
        data([(8, 8), (6, 10)], [(8, 8)])
    with pytest.raises(DreamBoothError, match="no class pictures"):
        data([(8, 8)]).order(0).next_prior((8, 8), 1)
    with pytest.raises(ValueError):
        data([(8, 8)]).order(0).next_batch(0)


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
    order = data([(8, 8)] * 3).order(1)
    order.next_batch(2)
    before = order.state()
    with pytest.raises(DreamBoothError):
        order.restore({**before, **change})
    assert order.state() == before
    with pytest.raises(DreamBoothError):
        data([(6, 10)]).order(1).restore(before)


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
