"""Styles change how an image of the world is made, never what it shows."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standalone.shapes.styles import STYLES, paint_aligned, parse_styled, render_styled, restyle, styled_caption
from standalone.shapes.world import ATTRIBUTES, caption, random_named, random_scene, render


def test_style_and_attributes_are_read_back_in_every_style() -> None:
    rng = np.random.default_rng(21)
    styles: list[bool] = []
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for number in range(120):
        scene, style = random_scene(rng), STYLES[number % len(STYLES)]
        found = parse_styled(render_styled(scene, style, rng))
        styles.append(found.style == style)
        for name, hit in found.picture.matches(scene, ATTRIBUTES).items():
            hits[name].append(hit)
    assert np.mean(styles) >= 0.98
    assert {name: np.mean(found) >= 0.98 for name, found in hits.items()} == dict.fromkeys(ATTRIBUTES, True)


def test_an_unstyled_image_is_a_photo_and_stays_as_it_was() -> None:
    rng = np.random.default_rng(22)
    picture = render(random_scene(rng), rng, 128, 128)
    assert np.array_equal(restyle(picture, "photo", rng), picture)
    assert parse_styled(picture).style == "photo"
    with pytest.raises(ValueError, match="photo, oil painting"):
        restyle(picture, "etching", rng)


def test_another_style_is_told_from_the_one_before() -> None:
    """The same image in each style, so that nothing but the style differs."""
    rng = np.random.default_rng(23)
    for _ in range(6):
        plain = paint_aligned(random_scene(rng), rng)
        assert [parse_styled(restyle(plain, style, rng)).style for style in STYLES] == list(STYLES)


@given(st.integers(0, 2**32 - 1))
def test_captions_name_the_style_and_what_they_are_asked_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, named = random_scene(rng), random_named(rng)
    style = STYLES[rng.integers(len(STYLES))]
    text = styled_caption(scene, style, named, rng)
    assert [other for other in STYLES if other in text] == [style]
    for name in named:
        assert getattr(scene, name) in text
    assert "picture" not in text
    assert styled_caption(scene, None, named) == caption(scene, named)
    assert styled_caption(scene, "oil painting", ()) == "an oil painting"


def test_the_world_of_shapes_itself_is_as_it_was() -> None:
    """Figures of other models rest on these images and captions."""
    rng, digest = np.random.default_rng(7), hashlib.sha256()
    for _ in range(20):
        scene = random_scene(rng)
        digest.update(render(scene, rng).tobytes())
        digest.update(caption(scene, random_named(rng), rng).encode())
    assert digest.hexdigest() == "5e322488df697c3fb7b706b6eee5182527a4727d98fec92462e98e2fce437e5d"
