"""Sizes that keep a picture's shape."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.dreambooth.photos import Photo
from lib_methods.dreambooth.photos.buckets import (
    bucket_for,
    bucket_sizes,
    fit,
    fit_warnings,
    micro_conditioning,
    step_for,
)
from lib_methods.pictures.tensor import to_tensor
from tests.dreambooth.pictures import picture

sides = st.integers(16, 6000)
resolutions = st.sampled_from([32, 64, 96, 256, 512, 520, 640, 768, 1024])


@settings(deadline=None)
@given(width=sides, height=sides, resolution=resolutions)
def test_a_bucket_has_about_the_area_and_never_more(width: int, height: int, resolution: int) -> None:
    w, h = bucket_for(width, height, resolution)
    step = step_for(resolution)
    assert w % step == 0 and h % step == 0
    assert 0.7 * resolution**2 <= w * h <= resolution**2 or resolution < 128
    assert resolution // 2 - step < min(w, h) and max(w, h) <= 2 * resolution


@settings(deadline=None)
@given(width=sides, height=sides, resolution=resolutions)
def test_no_other_bucket_is_nearer_in_shape(width: int, height: int, resolution: int) -> None:
    chosen = bucket_for(width, height, resolution)

    def off(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert off(chosen) <= min(map(off, bucket_sizes(resolution))) + 1e-6


@settings(deadline=None)
@given(width=sides, height=sides, resolution=resolutions)
def test_turning_a_picture_turns_its_bucket(width: int, height: int, resolution: int) -> None:
    w, h = bucket_for(width, height, resolution)
    turned = bucket_for(height, width, resolution)
    assert w * h == turned[0] * turned[1]
    assert sorted(turned) == sorted((w, h))


@settings(deadline=None)
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


@pytest.mark.parametrize("bad", [(0, 5, 512, 0), (5, 0, 512, 0), (5, 5, 32, 64), (5, 5, 0, 8)])
def test_sizes_that_are_none_are_errors(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError):
        bucket_for(*bad)


def test_a_picture_of_the_buckets_size_is_not_touched() -> None:
    image = picture(64, 48)
    pixels, mask, sizes = fit(image, None, (64, 48))
    assert torch.equal(pixels, to_tensor(image)) and mask is None
    assert sizes.tolist() == [48, 64, 0, 0, 48, 64]


@settings(deadline=None)
@given(width=st.integers(16, 200), height=st.integers(16, 200))
def test_fitted_pictures_have_the_buckets_size_and_range(width: int, height: int) -> None:
    bucket = bucket_for(width, height, 64)
    pixels, mask, sizes = fit(picture(width, height), Image.new("L", (7, 9), 255), bucket)
    assert pixels.shape == (3, bucket[1], bucket[0]) and pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1
    assert mask is not None and mask.shape == (1, bucket[1], bucket[0]) and torch.equal(mask, torch.ones_like(mask))
    assert sizes.shape == (6,) and sizes[4:].tolist() == [bucket[1], bucket[0]]


def test_the_middle_is_kept_and_the_mask_goes_with_it() -> None:
    image = Image.new("RGB", (300, 100))
    image.paste((255, 255, 255), (100, 0, 200, 100))
    pixels, mask, sizes = fit(image, image.convert("L").resize((150, 50)), (64, 64))
    assert pixels[:, 4:-4, 4:-4].min() > 0.99
    assert mask is not None and mask[:, 4:-4, 4:-4].min() > 0.99
    assert sizes.tolist() == [100, 300, 0, 64, 64, 64]


@settings(deadline=None)
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


@settings(deadline=None)
@given(width=st.integers(16, 1500), height=st.integers(16, 1500))
def test_enlarging_is_never_silent(width: int, height: int) -> None:
    bucket = bucket_for(width, height, 512)
    enlarged = bucket[0] > width or bucket[1] > height
    assume(max(width / height, height / width) < 3)
    notes = fit_warnings([photo(width, height)], [bucket])
    assert any("enlarged" in note for note in notes) == enlarged
    assert all("a.jpg" in note and "dir" not in note for note in notes)


def test_a_panorama_is_warned_of() -> None:
    (note,) = fit_warnings([photo(8000, 1000)], [bucket_for(8000, 1000, 512)])
    assert "cut" in note and "50 %" in note
    assert fit_warnings([photo(1000, 1000)], [(512, 512)]) == []
