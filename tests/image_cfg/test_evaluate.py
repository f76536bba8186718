"""The figures of `evaluate image_cfg` mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import evaluate_image_cfg as program
from standalone.instruct.triplets import CHANGED


@pytest.fixture(scope="module")
def asked() -> list[program.Edit]:
    return program.edits(60)


def test_every_edit_asks_for_one_attribute_and_all_kinds_occur(asked: list[program.Edit]) -> None:
    for edit in asked:
        before, after = edit.before.as_dict(), edit.after.as_dict()
        assert [name for name in before if before[name] != after[name]] == [edit.changed]
    assert {edit.changed for edit in asked} == set(CHANGED)


def test_the_wanted_pictures_get_full_marks(asked: list[program.Edit]) -> None:
    figures = program.measure(asked, [edit.wanted for edit in asked])
    assert figures["instruction_accuracy"] == figures["preservation"] == figures["layout"] == 1.0
    assert figures["direction"] == pytest.approx(1.0)
    assert program.f1(figures) == 1.0


def test_untouched_pictures_keep_all_and_follow_nothing(asked: list[program.Edit]) -> None:
    figures = program.measure(asked, [edit.source for edit in asked])
    assert figures["instruction_accuracy"] == figures["direction"] == 0.0
    assert figures["preservation"] == figures["similarity"] == figures["layout"] == 1.0
    assert program.f1(figures) == 0.0


def test_another_scene_that_has_the_attribute_follows_but_keeps_little(asked: list[program.Edit]) -> None:
    by_wish = {(edit.changed, getattr(edit.after, edit.changed)): edit for edit in reversed(asked)}
    others = [by_wish[edit.changed, getattr(edit.after, edit.changed)].wanted for edit in asked]
    figures = program.measure(asked, others)
    assert figures["instruction_accuracy"] == 1.0
    assert figures["preservation"] < 0.7 and figures["layout"] < 0.7 and figures["direction"] < 0.9


def test_rubbish_is_no_edit(asked: list[program.Edit]) -> None:
    grey = [np.full_like(edit.source, 128) for edit in asked]
    figures = program.measure(asked, grey)
    assert figures["preservation"] < 0.4 and figures["layout"] == 0.0


def test_the_balance_is_what_both_reach() -> None:
    assert program.balance({"instruction_accuracy": 0.95, "preservation": 0.89}) == 0.89
    assert program.balance({"instruction_accuracy": 0.91, "preservation": 0.92}) == 0.91


def test_monotonic_counts_the_steps_that_come_closer() -> None:
    grid = {(text, image): {"similarity": image} for text in program.TEXT_SCALES for image in program.IMAGE_SCALES}
    assert program.monotonic(grid) == 1.0
    grid[program.TEXT_SCALES[0], program.IMAGE_SCALES[1]] = {"similarity": 0.0}
    steps = len(program.TEXT_SCALES) * (len(program.IMAGE_SCALES) - 1)
    assert program.monotonic(grid) == pytest.approx(1 - 1 / steps)
