"""Prompt syntax on any text, and text encoders against transformers' own: chunks, weights, clip skip."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.prompts import Timeline, parse_prompt_attention, prompt_schedule
from standalone.engine.text import COMMA, TextEncoder, TextOptions, apply_emphasis, clip_tokenizer, split_prompt
from tests.standalone import tiny

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


WORDS = st.lists(st.sampled_from(["cat", "red", "unbelievable", ",", "of", "東京", "x-ray", "42"]), max_size=120)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """SD1's text encoder of a tiny model."""
    path = tiny.write_file(tiny.build("sd1"), tmp_path_factory.mktemp("text") / "model.safetensors")
    return load_checkpoint(path).cond_stage_model


def plain_ids(text: str, pad: int = 49407) -> torch.Tensor:
    ids = clip_tokenizer()(text)["input_ids"]
    return torch.tensor([ids + [pad] * (77 - len(ids))])


def test_the_vocabulary_is_clips() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer(",", add_special_tokens=False)["input_ids"] == [COMMA]


def test_a_short_prompt_is_what_transformers_makes_of_it(encoder: TextEncoder) -> None:
    hidden, _ = encoder(["a red circle"])
    with torch.no_grad():
        expected = encoder.transformer(input_ids=plain_ids("a red circle")).last_hidden_state
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("skip", [1, 2, 3, 99])
def test_clip_skip_takes_an_earlier_layer_with_the_final_norm(encoder: TextEncoder, skip: int) -> None:
    encoder.options = lambda: TextOptions(clip_skip=skip)
    hidden, _ = encoder(["a red circle"])
    with torch.no_grad():
        states = encoder.transformer(input_ids=plain_ids("a red circle"), output_hidden_states=True).hidden_states
        expected = encoder.final_norm(states[-min(skip, 3)])
    encoder.options = TextOptions
    assert torch.allclose(hidden, expected, atol=1e-6)


def test_long_prompts_are_encoded_chunk_by_chunk(encoder: TextEncoder) -> None:
    long = " ".join(["cat"] * 80)
    hidden, _ = encoder([long, "dog"])
    assert hidden.shape[:2] == (2, 154)
    first, _ = encoder([" ".join(["cat"] * 75)])
    rest, _ = encoder([" ".join(["cat"] * 5)])
    assert torch.allclose(hidden[0], torch.cat([first[0], rest[0]]), atol=1e-6)
    empty, _ = encoder([""])
    assert torch.allclose(hidden[1, 77:], empty[0], atol=1e-6), "shorter prompts get empty chunks"


@given(WORDS, st.integers(0, 40))
def test_no_token_is_lost_and_no_chunk_too_long(words: list[str], backtrack: int) -> None:
    prompt = " ".join(words)
    chunks, count = split_prompt(prompt, TextOptions(backtrack=backtrack))
    tokens = clip_tokenizer()(prompt, add_special_tokens=False)["input_ids"]
    assert [token for chunk in chunks for token in chunk.tokens] == tokens
    assert all(len(chunk.tokens) <= 75 and len(chunk.tokens) == len(chunk.weights) for chunk in chunks)
    assert all(len(chunk.framed(0)[0]) == len(chunk.framed(0)[1]) == 77 for chunk in chunks)
    assert len(tokens) <= count <= 75 * len(chunks)


def test_a_clause_is_not_torn_at_the_end_of_a_chunk() -> None:
    prompt = " ".join(["cat"] * 70) + ", a big red dog with a hat"
    chunks, _ = split_prompt(prompt, TextOptions(backtrack=20))
    assert len(chunks[0].tokens) == 71
    assert chunks[0].tokens[-1] == COMMA
    torn, _ = split_prompt(prompt, TextOptions(backtrack=0))
    assert len(torn[0].tokens) == 75


def test_break_begins_a_chunk() -> None:
    chunks, _ = split_prompt("a BREAK b BREAK c", TextOptions())
    assert [len(chunk.tokens) for chunk in chunks] == [1, 1, 1]


def test_weights_scale_tokens_and_keep_the_mean(encoder: TextEncoder) -> None:
    plain, _ = encoder(["a red circle"])
    weighted, _ = encoder(["a (red:1.5) circle"])
    assert float(weighted.mean()) == pytest.approx(float(plain.mean()), rel=1e-4)
    ratio = weighted[0] / plain[0]
    assert torch.allclose(ratio[2], 1.5 * ratio[1], rtol=1e-3), "token 2 is 'red'"
    encoder.options = lambda: TextOptions(emphasis="No norm")
    raw, _ = encoder(["a (red:1.5) circle"])
    encoder.options = lambda: TextOptions(emphasis="Ignore")
    ignored, _ = encoder(["a (red:1.5) circle"])
    encoder.options = lambda: TextOptions(emphasis="None")
    literal, _ = encoder(["a (red:1.5) circle"])
    encoder.options = TextOptions
    assert torch.allclose(raw[0, 2], 1.5 * plain[0, 2], atol=1e-5)
    assert torch.allclose(raw[0, 1], plain[0, 1], atol=1e-6)
    assert torch.equal(ignored, plain)
    assert not torch.allclose(literal, plain)


def test_weights_of_one_leave_the_text_bit_identical() -> None:
    hidden = torch.randn(2, 77, 8)
    assert apply_emphasis(hidden, torch.ones(2, 77), "Original") is hidden


def test_sd2_pads_with_zero_and_skips_its_last_layer(tmp_path: Path) -> None:
    parts = tiny.build("sd2")
    model = load_checkpoint(tiny.write_file(parts, tmp_path / "model.safetensors"))
    hidden = model.get_learned_conditioning(["a red circle"])
    with torch.no_grad():
        expected = parts.texts[0](input_ids=plain_ids("a red circle", pad=0)).last_hidden_state
    assert isinstance(hidden, torch.Tensor)
    assert torch.allclose(hidden, expected, atol=1e-5)


def test_the_pooled_state_is_the_first_chunks(checkpoints: Callable[..., Path]) -> None:
    model = load_checkpoint(checkpoints("sdxl"))
    second = model.text_encoders[1]
    _, short = second(["cat"])
    _, long = second(["cat BREAK dog"])
    assert short is not None
    assert torch.allclose(short, long, atol=1e-6)
