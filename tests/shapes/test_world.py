"""The procedural world: pictures agree with their scenes, and the parser reads them back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, BACKGROUNDS, VALUES, Scene, caption, random_named, random_scene, render


def test_the_parser_reads_rendered_pictures_back() -> None:
    """At least 99 % of every attribute, over every combination of kind, texture and size with random rest."""
    rng = np.random.default_rng(3)
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for _ in range(600):
        scene = random_scene(rng)
        for name, hit in parse(render(scene, rng)).matches(scene, ATTRIBUTES).items():
            hits[name].append(hit)
    assert {name: np.mean(found) >= 0.99 for name, found in hits.items()} == dict.fromkeys(ATTRIBUTES, True)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (96, 64), (64, 96), (192, 128)])
def test_the_parser_reads_other_sizes(width: int, height: int) -> None:
    rng = np.random.default_rng(4)
    names = ("kind", "colour", "texture", "background", "size")
    hits: list[bool] = []
    for _ in range(60):
        scene = random_scene(rng)
        hits += parse(render(scene, rng, width, height)).matches(scene, names).values()
    assert np.mean(hits) >= 0.99


def test_the_parser_tells_wrong_pictures_from_right_ones() -> None:
    """A parser that always agrees would pass the test above: change one attribute and it must disagree."""
    rng = np.random.default_rng(5)
    for name in ATTRIBUTES:
        for _ in range(20):
            scene = random_scene(rng)
            others = [value for value in VALUES[name] if value != getattr(scene, name)]
            changed = Scene(**{**scene.as_dict(), name: others[rng.integers(len(others))]})
            assert not parse(render(changed, rng)).matches(scene, (name,))[name]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_picture_shows_two_to_five_objects_that_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = parse(render(random_scene(rng), rng)).objects
    assert 2 <= len(found) <= 5
    assert len({o.colour for o in found}) == len({o.kind for o in found}) == 1


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_parser_takes_any_picture(width: int, height: int, seed: int, noisy: bool) -> None:
    rng = np.random.default_rng(seed)
    if noisy:
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        picture = np.full((height, width, 3), rng.integers(0, 256), dtype=np.uint8)
    result = parse(picture)
    assert result.attributes["background"] in BACKGROUNDS
    if not noisy:
        assert result.objects == ()
        assert result.attributes["kind"] is None


def test_the_parser_refuses_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        parse(np.zeros((4, 4)))


def test_a_scene_draws_the_same_picture_from_the_same_seed() -> None:
    scene = random_scene(np.random.default_rng(1))
    one, two = (render(scene, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, render(scene, np.random.default_rng(3)))


@given(st.integers(0, 2**32 - 1))
def test_captions_name_what_they_are_asked_to_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, named = random_scene(rng), random_named(rng)
    text = caption(scene, named, rng)
    assert (text == "") == (named == ())
    for name in ATTRIBUTES:
        for value in VALUES[name]:
            said = value in text.replace("crosses", "cross").replace("shapes", "")
            assert said == (name in named and value == getattr(scene, name)), (text, name, value)


def test_a_recompressed_picture_is_still_read(tmp_path) -> None:
    """People like pictures that went through JPEG."""
    rng = np.random.default_rng(8)
    hits: list[bool] = []
    for number in range(20):
        scene = random_scene(rng)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(render(scene, rng)).save(path, quality=92)
        with Image.open(path) as image:
            hits += parse(np.asarray(image)).matches(scene, ATTRIBUTES).values()
    assert np.mean(hits) >= 0.9
