"""Prompt syntax: weights, schedules, AND. Properties on any text, and the examples that users know."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.engine.prompts import Timeline, parse_prompt_attention, prompt_schedule

ANY_TEXT = st.text(max_size=60)
SYNTAX = st.text(alphabet="ab ()[]:|\\.,015BREAKND\n", max_size=60)
PLAIN = st.text(alphabet="abc xyz,.-", min_size=1, max_size=20)


def schedule(prompt: str, steps: int = 10) -> list[Any]:
    return prompt_schedule(prompt, Timeline(steps))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [["a cat", 1.0]]),
        ("", [["", 1.0]]),
        ("a (big) cat", [["a ", 1.0], ["big", 1.1], [" cat", 1.0]]),
        ("(big:1.5)", [["big", 1.5]]),
        ("(big: 1.5 )", [["big", 1.5]]),
        ("(a (b:2):3)", [["a ", 3.0], ["b", 6.0]]),
        ("[soft]", [["soft", 1 / 1.1]]),
        (r"\(as it is\)", [["(as it is)", 1.0]]),
        (r"\[a\\b\]", [["[a\\b]", 1.0]]),
        ("(open", [["open", 1.1]]),
        ("shut)", [["shut)", 1.0]]),
        ("a:1.2", [["a:1.2", 1.0]]),
        ("((a))", [["a", 1.1 * 1.1]]),
        ("a BREAK b", [["a", 1.0], ["BREAK", -1], ["b", 1.0]]),
        ("(a BREAK b:2)", [["a", 2.0], ["BREAK", -1], ["b", 2.0]]),
        ("unBREAKable", [["unBREAKable", 1.0]]),
    ],
)
def test_weights(text: str, expected: list[Any]) -> None:
    found = parse_prompt_attention(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@given(st.one_of(ANY_TEXT, SYNTAX))
@settings(max_examples=200)
def test_any_text_has_weights(text: str) -> None:
    pieces = parse_prompt_attention(text)
    assert pieces
    for (_, weight), (_, following) in zip(pieces, pieces[1:]):
        assert weight != following or -1 in (weight, following), "equal neighbours are joined"
    assert all(isinstance(text, str) and math.isfinite(float(weight)) for text, weight in pieces)


@given(st.text(alphabet="ab ,()[]\\:", max_size=40))
def test_escaped_text_stays_as_it_is(text: str) -> None:
    escaped = "".join("\\" + char if char in "()[]\\" else char for char in text)
    assert parse_prompt_attention(escaped) == [[text, 1.0]]


@given(PLAIN, st.floats(0.1, 3).map(lambda value: round(value, 2)))
def test_a_weight_is_what_it_says(text: str, weight: float) -> None:
    assert parse_prompt_attention(f"({text}:{weight})") == [[text, pytest.approx(weight)]]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [[10, "test"]]),
        ("a [b:3]", [[3, "a "], [10, "a b"]]),
        ("a [b: 3]", [[3, "a "], [10, "a b"]]),
        ("a [[[b]]:2]", [[2, "a "], [10, "a [[b]]"]]),
        ("[(a:2):3]", [[3, ""], [10, "(a:2)"]]),
        ("a [b : c : 1] d", [[1, "a b  d"], [10, "a  c  d"]]),
        ("a[b:[c:d:2]:1]e", [[1, "abe"], [2, "ace"], [10, "ade"]]),
        ("a [unbalanced", [[10, "a [unbalanced"]]),
        ("a [b:.5] c", [[5, "a  c"], [10, "a b c"]]),
        ("[red::4] cat", [[4, "red cat"], [10, " cat"]]),
        ("((a][:b:c [d:3]", [[3, "((a][:b:c "], [10, "((a][:b:c d"]]),
        ("[a:b]", [[10, "[a:b]"]]),
        ("[a:b:c]", [[10, "[a:b:c]"]]),
        ("[a:b:0]", [[10, "b"]]),
        ("[a:b:99]", [[10, "a"]]),
        (r"\[a:b:5\]", [[10, r"\[a:b:5\]"]]),
        ("(a [b:c:0.5]:1.2)", [[5, "(a b:1.2)"], [10, "(a c:1.2)"]]),
    ],
)
def test_prompt_editing(prompt: str, expected: list[Any]) -> None:
    assert schedule(prompt) == expected


def test_alternation_takes_turns() -> None:
    assert [text for _, text in schedule("[fe|]male", 4)] == ["female", "male", "female", "male"]
    assert [text for _, text in schedule("[a|(b:1.1)|c]", 4)] == ["a", "(b:1.1)", "c", "a"]
    assert [text for _, text in schedule("[[a|b]|c]", 4)] == ["a", "c", "a", "c"]


def test_the_second_pass_goes_on_counting() -> None:
    second = Timeline(10, int_offset=10, share_offset=1.0)
    assert prompt_schedule("a [b:.5] c", second) == [[10, "a b c"]]
    assert prompt_schedule("a [b:1.5] c", second) == [[5, "a  c"], [10, "a b c"]]
    assert prompt_schedule("a [b:13] c", second) == [[3, "a  c"], [10, "a b c"]]


@given(st.one_of(ANY_TEXT, SYNTAX), st.integers(1, 30))
@settings(max_examples=200)
def test_any_text_has_a_schedule(prompt: str, steps: int) -> None:
    found = schedule(prompt, steps)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps
    assert ends[0] >= 1


@given(st.text(alphabet="ab (),.12\n", max_size=40))
def test_text_without_square_brackets_is_one_prompt(prompt: str) -> None:
    assert schedule(prompt) == [[10, prompt]]


@given(PLAIN, PLAIN, st.integers(1, 9))
def test_a_schedule_changes_at_its_step(before: str, after: str, step: int) -> None:
    assert schedule(f"[{before}:{after}:{step}]") == [[step, before], [10, after]]


@pytest.mark.parametrize(
    "hostile", ["[" * 5000, "[" * 3000 + "]" * 3000, "[a:" * 400 + "1]" * 400, "(" * 5000, "[|" * 500 + "]" * 500]
)
def test_hostile_prompts_take_no_time(hostile: str) -> None:
    assert schedule(hostile)[-1][0] == 10
    assert parse_prompt_attention(hostile)


def test_and_splits_with_weights(sd1: Any) -> None:
    from modules.prompt_parser import get_multicond_prompt_list

    indexes, flat, positions = get_multicond_prompt_list(
        ["a cat :1.2 AND a dog AND a cat:1.2", "a dog", "LAND AND SEA :-1"]
    )
    assert list(flat) == ["a cat", " a dog", " a cat", "a dog", "LAND", " SEA"]
    assert indexes == [[(0, 1.2), (1, 1.0), (2, 1.2)], [(3, 1.0)], [(4, 1.0), (5, -1.0)]]
    assert positions["LAND"] == 4


def test_conds_follow_the_schedule(sd1: Any) -> None:
    import torch

    from modules import prompt_parser

    model = sd1.host.model
    schedules = prompt_parser.get_learned_conditioning(model, ["a [red:blue:2] ball", "x"], 5)
    assert [entry.end_at_step for entry in schedules[0]] == [2, 5]
    batches = [prompt_parser.reconstruct_cond_batch(schedules, step) for step in range(1, 6)]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[2], batches[4])
    assert not torch.equal(batches[1][0], batches[2][0])
    assert torch.equal(batches[0][1], batches[4][1])
    direct = model.get_learned_conditioning(["a blue ball"])
    assert torch.allclose(batches[4][0], direct[0], atol=1e-6)
