"""Subjects of the shapes' world are told apart wherever they stand, and their figures say what they mean."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from standalone import ROOT
from standalone.engine.checkpoint import load_checkpoint
from standalone.shapes.parser import parse
from standalone.shapes.subjects import (
    FIGURES,
    PLACES,
    SUBJECTS,
    Drawn,
    Subject,
    diversity,
    fidelity,
    follows,
    is_subject,
    measure,
    new_settings,
    paint_subject,
    photos,
    prompt_of,
    settings,
)
from standalone.shapes.world import BACKGROUNDS, COLOURS, KINDS, caption, random_scene, render

SUBJECT = SUBJECTS[0]
ASKED = tuple(new_settings())


def ordinary(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [render(random_scene(rng, kind="circle"), rng) for _ in range(count)]


def of_subject(asked: tuple[tuple[str, str], ...] = ASKED) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [paint_subject(SUBJECT, *setting, rng) for setting in asked]


def untrained() -> Drawn:
    return Drawn(ordinary(12), ordinary(12, 1), ordinary(12, 2), ASKED)


def perfect() -> Drawn:
    return Drawn(of_subject(), of_subject(), ordinary(12, 2), ASKED)


def test_a_perfect_model_gets_full_marks() -> None:
    assert measure(SUBJECT, perfect(), untrained()) == pytest.approx(dict.fromkeys(FIGURES, 1.0))


def test_an_untrained_model_keeps_the_class_and_has_no_subject() -> None:
    figures = measure(SUBJECT, untrained(), untrained())
    assert figures["subject_fidelity"] == figures["subject_in_new"] == 0.0
    assert figures["prior_preserved"] == figures["prior_diversity"] == figures["prior_class"] == 1.0
    assert figures["prompt_fidelity"] < 0.6


def test_a_class_that_became_the_subject_is_seen_in_both_figures_of_the_prior() -> None:
    found = Drawn(of_subject(), of_subject(), of_subject((("left", "grey"),) * 12), ASKED)
    figures = measure(SUBJECT, found, untrained())
    assert figures["subject_fidelity"] == 1.0
    assert figures["prior_preserved"] == 0.0 and figures["prior_diversity"] < 0.2


BY_NAME = {subject.name: subject for subject in SUBJECTS}
every_subject = pytest.mark.parametrize("name", BY_NAME)


def everywhere(subject: Subject, seed: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [paint_subject(subject, place, ground, rng) for place in PLACES for ground in BACKGROUNDS]


@every_subject
def test_a_subject_is_read_anywhere(name: str) -> None:
    assert [fidelity(BY_NAME[name], picture) for picture in everywhere(BY_NAME[name])] == [1.0] * 16


@every_subject
def test_a_subject_survives_the_autoencoder(name: str) -> None:
    model = load_checkpoint(ROOT / "models" / "shapes" / "shapes.safetensors")
    pixels = torch.from_numpy(np.stack(everywhere(BY_NAME[name]))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = model.get_first_stage_encoding(model.encode_first_stage(pixels))
        decoded = model.decode_first_stage(latents).clamp(-1, 1)
    seen = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.mean([fidelity(BY_NAME[name], picture) for picture in seen]) > 0.9


def test_no_subject_is_taken_for_another() -> None:
    for one, other in permutations(SUBJECTS, 2):
        assert not any(is_subject(one, picture) for picture in everywhere(other))


def test_ordinary_pictures_of_the_world_are_no_subject() -> None:
    rng = np.random.default_rng(6)
    for _ in range(150):
        picture = render(random_scene(rng), rng)
        assert [fidelity(subject, picture) for subject in SUBJECTS] == [0.0] * len(SUBJECTS)


@every_subject
def test_its_halves_alone_and_the_wrong_way_round_are_no_subject(name: str) -> None:
    subject = BY_NAME[name]
    for wrong in (
        replace(subject, first=subject.second),
        replace(subject, second=subject.first),
        replace(subject, first=subject.second, second=subject.first),
    ):
        assert not any(is_subject(subject, picture) for picture in everywhere(wrong))


def test_a_stray_object_costs_its_share() -> None:
    subject = SUBJECTS[0]
    picture = paint_subject(subject, "left", "grey", np.random.default_rng(0)).copy()
    picture[30:46, 46:62] = COLOURS["green"]
    assert fidelity(subject, picture) == pytest.approx(2 / 3)
    assert fidelity(subject, np.zeros((64, 64, 3), np.uint8)) == 0.0


@every_subject
def test_photos_are_four_the_same_each_time_and_each_in_a_place_of_its_own(name: str) -> None:
    subject = BY_NAME[name]
    taken = photos(subject)
    assert len(taken) == 4 and all(np.array_equal(a, b) for a, b in zip(taken, photos(subject)))
    assert [follows(picture, *setting) for picture, setting in zip(taken, settings())] == [1.0] * 4
    assert {place for place, _ in settings()} == set(PLACES)
    assert {ground for _, ground in settings()} == set(BACKGROUNDS)
    assert not set(settings()) & set(new_settings()) and len(new_settings()) == 12


def test_prompts_are_in_the_words_that_the_model_knows() -> None:
    assert prompt_of("ohwx circles", "circles") == "a ohwx circles"
    assert prompt_of("ohwx crosses", "crosses", "left", "grey") == "a ohwx crosses on the left on a grey background"
    plurals = {caption(random_scene(np.random.default_rng(0), kind=kind), ("kind",)): kind for kind in KINDS}
    assert all(plurals[subject.noun] == subject.first.kind for subject in SUBJECTS)


def test_following_a_prompt_is_half_place_and_half_background() -> None:
    picture = paint_subject(SUBJECTS[0], "left", "grey", np.random.default_rng(0))
    assert parse(picture).attributes["place"] == "left"
    asked = [("left", "grey"), ("left", "black"), ("top", "grey"), ("top", "black")]
    assert [follows(picture, *one) for one in asked] == [1.0, 0.5, 0.5, 0.0]


def test_diversity_is_none_for_copies_and_high_for_the_world() -> None:
    rng = np.random.default_rng(1)
    pictures = [render(random_scene(rng, kind="circle"), rng) for _ in range(40)]
    assert diversity(pictures) > 0.6
    assert diversity([pictures[0]] * 5) == diversity([]) == 0.0
    assert diversity(photos(SUBJECTS[0])) < diversity(pictures)
