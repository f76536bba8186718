"""The cache of inversions stays within its limit, gives up the oldest, and tells apart all that matters."""

from __future__ import annotations

import threading

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.pix2pix_zero.apply import InversionCache, inversion_key, tensor_hash
from lib_methods.pix2pix_zero.inversion import (
    AncestralSettings,
    InversionSettings,
    Trajectory,
    invert,
    invert_ancestral,
)
from tests.pix2pix_zero.toys import Gaussian, latent_of, levels


def trajectory(steps: int = 3) -> Trajectory:
    return invert(latent_of(1, 4, 8, 8), levels(steps), Gaussian(), InversionSettings("ddim", regularisation="off"))


def test_the_least_recently_used_goes_first():
    cache, one = InversionCache(), trajectory()
    limit = 2 * one.size
    assert cache.put("a", one, limit) and cache.put("b", one, limit)
    assert cache.get("a") is not None
    assert cache.put("c", one, limit)
    assert cache.get("b") is None and cache.get("a") is not None and len(cache) == 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 6), st.integers(0, 20000)), max_size=15))
def test_the_limit_holds_after_every_put(puts):
    cache = InversionCache()
    for name, steps, limit in puts:
        held = trajectory(steps)
        assert cache.put(name, held, limit) == (held.size <= limit)
        assert cache.size <= limit
        assert (cache.get(name) is not None) == (held.size <= limit)


def test_an_inversion_that_is_too_large_does_not_leave_an_older_one_in_its_place():
    cache = InversionCache()
    cache.put("a", trajectory(2), 10**6)
    assert not cache.put("a", trajectory(50), 1000)
    assert cache.get("a") is None


def test_a_partial_one_is_kept_and_replaced_by_the_finished_one():
    cache, x0, sigmas = InversionCache(), latent_of(1, 4, 8, 8), levels(4)
    choice = InversionSettings()
    cache.put("a", invert(x0, sigmas, Gaussian(), choice, lambda done, total: done < 3), 10**6)
    begun = cache.get("a")
    assert isinstance(begun, Trajectory) and begun.done == 3
    cache.put("a", invert(x0, sigmas, Gaussian(), choice, partial=begun), 10**6)
    finished = cache.get("a")
    assert isinstance(finished, Trajectory) and finished.complete and len(cache) == 1


def test_every_part_of_the_key_counts():
    x0, sigmas = latent_of(1, 4, 8, 8), levels(4)
    first = inversion_key(x0, ("m", 1), "a cat", sigmas, InversionSettings())
    assert first == inversion_key(x0.clone(), ("m", 1), "a cat", sigmas.double(), InversionSettings())
    others = {
        inversion_key(x0 + 1e-6, ("m", 1), "a cat", sigmas, InversionSettings()),
        inversion_key(x0, ("m", 2), "a cat", sigmas, InversionSettings()),
        inversion_key(x0, ("m", 1), "a dog", sigmas, InversionSettings()),
        inversion_key(x0, ("m", 1), "a cat", levels(5), InversionSettings()),
        inversion_key(x0, ("m", 1), "a cat", sigmas, InversionSettings(regularisation="off")),
        inversion_key(x0, ("m", 1), "a cat", sigmas, AncestralSettings()),
        inversion_key(x0.view(1, 4, 4, 16), ("m", 1), "a cat", sigmas, InversionSettings()),
    }
    assert len(others) == 7 and first not in others


def test_the_hash_knows_shape_and_type_but_not_the_layout():
    x = latent_of(1, 4, 8, 8)
    assert tensor_hash(x) == tensor_hash(x.transpose(2, 3).contiguous().transpose(2, 3))
    assert tensor_hash(x) != tensor_hash(x.double()) != tensor_hash(x.half())
    assert tensor_hash(torch.zeros(2, 3)) != tensor_hash(torch.zeros(3, 2))
    assert tensor_hash(x.bfloat16()) == tensor_hash(x.bfloat16())


def test_paths_of_ancestral_samplers_are_kept_as_well_and_all_is_forgotten_on_demand():
    cache = InversionCache()
    path = invert_ancestral(latent_of(1, 4, 8, 8), levels(3), Gaussian())
    cache.put("p", path, 10**6)
    assert cache.size == path.size
    cache.clear()
    assert cache.get("p") is None and cache.size == 0


def test_threads_do_not_disturb_each_other():
    cache, one = InversionCache(), trajectory()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(100):
                cache.put(f"{number}-{turn % 5}", one, 4 * one.size)
                cache.get(f"{(number + 1) % 4}-{turn % 5}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and cache.size <= 4 * one.size
