"""The figures of `evaluate pix2pix_zero` mean what they say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib_methods.pix2pix_zero.words import mentions
from standalone.instruct import edits as program
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, VALUES, caption, render


@pytest.fixture(scope="module")
def asked() -> list[program.Edit]:
    return program.rendered(60)[0]


def without_the_perfect_edit(asked: Sequence[program.Edit]) -> list[program.Edit]:
    return [replace(edit, wanted=None) for edit in asked]


def test_every_edit_asks_for_one_attribute_and_the_tasks_take_turns(asked: list[program.Edit]) -> None:
    for edit in asked:
        before, after = edit.before.as_dict(), edit.after.as_dict()
        assert [name for name in before if before[name] != after[name]] == [edit.task]
        assert edit.words == (before[edit.task], after[edit.task])
    assert Counter(edit.task for edit in asked) == dict.fromkeys(program.TASKS, 20)
    assert len({edit.name for edit in asked}) > 25


def test_the_perfect_edits_get_full_marks(asked: list[program.Edit]) -> None:
    figures = program.measure(asked, [edit.wanted for edit in asked if edit.wanted is not None])
    assert figures["target_accuracy"] == figures["preserved_accuracy"] == figures["product"] == 1.0
    assert figures["background_l1"] == 0.0 and figures["layout"] == 1.0
    same_outline = [edit for edit in asked if edit.task != "kind"]
    kept = program.measure(same_outline, [edit.wanted for edit in same_outline if edit.wanted is not None])
    assert kept["structure_iou"] > 0.95  # another kind of object has another outline


def test_untouched_pictures_keep_all_and_follow_nothing(asked: list[program.Edit]) -> None:
    for edits in (asked, without_the_perfect_edit(asked)):
        figures = program.measure(edits, [edit.source for edit in edits])
        assert figures["target_accuracy"] == figures["product"] == figures["background_l1"] == 0.0
        assert figures["preserved_accuracy"] == figures["structure_iou"] == figures["layout"] == 1.0


def test_the_right_scene_at_other_places_follows_and_keeps_no_structure(asked: list[program.Edit]) -> None:
    redrawn = [render(edit.after, np.random.default_rng(i)) for i, edit in enumerate(asked)]
    figures = program.measure(asked, redrawn)
    assert figures["target_accuracy"] > 0.95 and figures["preserved_accuracy"] > 0.95
    assert figures["structure_iou"] < 0.5 and figures["layout"] < 0.7 and figures["background_l1"] > 0.03


def test_rubbish_is_no_edit(asked: list[program.Edit]) -> None:
    for edits in (asked, without_the_perfect_edit(asked)):
        grey = program.measure(edits, [np.full_like(edit.source, 128) for edit in edits])
        assert grey["target_accuracy"] == grey["structure_iou"] == grey["layout"] == 0.0
        assert grey["preserved_accuracy"] < 0.1 and grey["background_l1"] > 0.1
        rng = np.random.default_rng(0)
        noise = program.measure(edits, [rng.integers(0, 256, edit.source.shape, dtype=np.uint8) for edit in edits])
        assert noise["product"] < 0.1


def test_the_background_is_where_no_object_is_or_comes(asked: list[program.Edit]) -> None:
    for edit, same in zip(asked, without_the_perfect_edit(asked)):
        assert edit.wanted is not None
        known, found = program.background(edit), program.background(same)
        assert np.array_equal(edit.source[known], edit.wanted[known])
        assert not (found & program.foreground(edit.source)).any()
        assert known.mean() > 0.3 and found.mean() > 0.15


def test_a_change_of_the_background_is_counted_in_its_own_unit(asked: list[program.Edit]) -> None:
    for edit in asked[:6]:
        moved = np.where(edit.source < 128, edit.source + 51, edit.source - 51).astype(np.uint8)
        assert program.background_l1(edit, moved) == pytest.approx(0.2)


def test_psnr_is_in_decibels() -> None:
    picture = np.full((8, 8, 3), 100, np.uint8)
    assert program.psnr(picture, picture) == 100
    assert program.psnr(picture + 51, picture) == pytest.approx(20 * np.log10(5))


def test_generated_pictures_are_kept_only_where_all_attributes_are_right() -> None:
    drawn: list[np.ndarray] = []

    def draw(prompts: Sequence[str], seed: int) -> list[np.ndarray]:
        """Every second image is of another scene than its prompt's."""
        by_prompt = {caption(program.scenes(n, program.SEED + 1)[1]): n for n in range(200)}
        pictures = []
        for place, prompt in enumerate(prompts):
            _, before, after = program.scenes(by_prompt[prompt], program.SEED + 1)
            pictures.append(render(after if place % 2 else before, np.random.default_rng(seed + place)))
        drawn.extend(pictures)
        return pictures

    kept, share = program.generated(9, draw)
    assert [edit.task for edit in kept] == list(program.TASKS) * 3
    assert share == 0.5 and len(drawn) > 9
    assert all(all(parse(edit.source).matches(edit.before, ATTRIBUTES).values()) for edit in kept)
    assert all(edit.wanted is None for edit in kept)


def test_a_model_that_draws_nothing_right_is_reported() -> None:
    with pytest.raises(RuntimeError, match="0 of"):
        program.generated(3, lambda prompts, seed: [np.zeros((64, 64, 3), np.uint8)] * len(prompts))


def test_rendered_pictures_are_kept_only_where_the_autoencoder_leaves_them_readable() -> None:
    times = 0

    def spoil(pictures: list[np.ndarray]) -> list[np.ndarray]:
        """Every fourth source, and every fourth perfect edit, others."""
        nonlocal times
        times += 1
        return [np.zeros_like(p) if (i + times) % 4 == 0 else p for i, p in enumerate(pictures)]

    kept, share = program.rendered(9, spoil)
    assert [edit.task for edit in kept] == list(program.TASKS) * 3
    assert share == 0.5  # a quarter for the one, another quarter for the other
    assert len({edit.source.tobytes() for edit in kept}) == 9
    every, share = program.rendered(9)
    assert share == 1
    assert [edit.name for edit in every] != [edit.name for edit in kept]


def test_the_sentences_of_two_values_differ_in_the_value_alone() -> None:
    for task in program.TASKS:
        first, *others = VALUES[task]
        ours = program.sentences(first, task)
        assert len(set(ours)) > 50 and all(mentions(sentence, first) for sentence in ours)
        for other in others:
            theirs = program.sentences(other, task)
            assert [_without(sentence, first) for sentence in ours] == [_without(s, other) for s in theirs]


def _without(sentence: str, value: str) -> str:
    return re.sub(rf"\b{value}(e?s)?\b", "...", sentence)


def test_a_direction_leads_from_the_mean_of_its_source_to_that_of_its_target() -> None:
    def embed(texts: list[str]) -> torch.Tensor:
        """Tokens: of which colour is the text?"""
        return torch.tensor([[[float(colour in text)] for colour in VALUES["colour"]] for text in texts])

    found = program.directions(embed)
    assert len(found) == 4 * 3 + 6 * 5 + 3 * 2
    red, green = VALUES["colour"].index("red"), VALUES["colour"].index("green")
    wanted = torch.zeros(len(VALUES["colour"]), 1)
    wanted[red], wanted[green] = -1.0, 1.0
    # no colour is part of another word here but "red", and that in none of the world's captions
    assert torch.equal(found["red to green"].context, wanted)
    assert torch.equal(found["circle to square"].context, torch.zeros_like(wanted))
