"""Text encoders: chunks of 75 tokens, weights, clip skip, against transformers' own models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.text import COMMA, TextEncoder, TextOptions, apply_emphasis, clip_tokenizer, split_prompt
from tests.standalone import tiny

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
@settings(max_examples=60, deadline=None)
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
