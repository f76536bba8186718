"""The figures of edits by instruction mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from standalone.instruct import instructions as program
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


def test_untouched_pictures_keep_all_and_follow_nothing(asked: list[program.Edit]) -> None:
    figures = program.measure(asked, [edit.source for edit in asked])
    assert figures["instruction_accuracy"] == figures["direction"] == 0.0
    assert figures["preservation"] == figures["similarity"] == figures["layout"] == 1.0


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
