"""Directions: means, chunks, combinations; what is no direction is refused with a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.pix2pix_zero.directions import (
    Direction,
    DirectionError,
    Origin,
    combine,
    fit_tokens,
    make_direction,
    mean_embedding,
)

ORIGIN = Origin("cat", "dog", 3, 4, 2, "some model")


@dataclass(frozen=True)
class Told:
    context: Tensor
    vector: Tensor | None = None


class Encoder:
    """Embeds a sentence by its letters, in as many chunks of 77 tokens as it has words; a batch as long as its
    longest sentence, as hosts do."""

    def __init__(self, dim: int = 8, vector: bool = False) -> None:
        self.dim, self.vector = dim, vector
        self.batches: list[int] = []

    def alone(self, sentence: str) -> Tensor:
        parts = []
        for word in sentence.split():
            generator = torch.Generator().manual_seed(sum(map(ord, word)))
            parts.append(torch.randn(77, self.dim, generator=generator))
        return torch.cat(parts)

    def __call__(self, sentences: list[str]) -> Tensor | Told:
        self.batches.append(len(sentences))
        rows = [self.alone(sentence) for sentence in sentences]
        longest = max(len(row) for row in rows)
        context = torch.stack([fit_tokens(row, longest) for row in rows])
        return Told(context, context.mean(1)) if self.vector else context


def direction(tokens: int = 77, dim: int = 8, seed: int = 0, vector: int = 0, origin: Origin = ORIGIN) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(vector, generator=generator) if vector else None
    return Direction(torch.randn(tokens, dim, generator=generator), origin, pooled)


SENTENCES = st.lists(st.lists(st.sampled_from(["cat", "sun", "red"]), min_size=1, max_size=4).map(" ".join), min_size=1)


@settings(max_examples=40, deadline=None)
@given(SENTENCES, st.integers(1, 7))
def test_the_mean_does_not_depend_on_how_the_sentences_are_batched(sentences, batch):
    encoder = Encoder(vector=True)
    mean, vector = mean_embedding(sentences, encoder, batch=batch)
    assert sum(encoder.batches) == len(sentences) and max(encoder.batches) <= batch
    longest = 77 * max(len(sentence.split()) for sentence in sentences)
    expected = torch.stack([fit_tokens(encoder.alone(sentence), longest) for sentence in sentences]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert vector is not None and vector.shape == (8,)


@given(st.integers(1, 4), st.integers(0, 5))
def test_a_longer_prompt_gets_the_last_chunk_again_beginning_to_beginning(chunks, more):
    context = torch.arange(77.0 * chunks * 2).view(-1, 2)
    longer = fit_tokens(context, 77 * (chunks + more))
    assert torch.equal(longer[: 77 * chunks], context)
    for chunk in range(chunks, chunks + more):
        assert torch.equal(longer[77 * chunk : 77 * (chunk + 1)], context[-77:])
    assert torch.equal(fit_tokens(longer, 77 * chunks), context)


def test_embeddings_of_another_length_than_clips_are_repeated_as_a_whole():
    assert fit_tokens(torch.arange(3.0)[:, None], 8).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_direction_is_the_difference_of_the_means():
    encoder, before, after = Encoder(vector=True), ["cat", "red cat"], ["dog", "a dog there", "dog sun"]
    made = make_direction("cat", "dog", before, after, encoder, clip_skip=2, model="m")
    assert len(made.context) == 3 * 77 and made.text_width == 8
    expected = mean_embedding(after, encoder)[0] - fit_tokens(mean_embedding(before, encoder)[0], 231)
    torch.testing.assert_close(made.context, expected)
    assert made.vector is not None
    assert made.origin == Origin("cat", "dog", 2, 3, 2, "m")


def test_what_makes_no_direction_is_refused_with_a_sentence():
    good: tuple[Any, ...] = (["cat"], ["dog"], Encoder())
    for source, target in (("cat", "Cat "), ("", "dog"), ("cat", "\x00")):
        with pytest.raises(ValueError, match=r"\.$"):
            make_direction(source, target, *good)
    with pytest.raises(DirectionError, match="at least one sentence"):
        make_direction("cat", "dog", [], ["dog"], Encoder())
    for wrong in (
        lambda texts: torch.zeros(77, 8),
        lambda texts: torch.zeros(len(texts) + 1, 77, 8),
        lambda texts: torch.zeros(1, 77, 8 + len(texts[0])),
        lambda texts: torch.full((1, 77, 8), math.nan),
    ):
        with pytest.raises(DirectionError, match="text encoder"):
            make_direction("cat", "horse", ["cat"], ["horse"], wrong)


def test_a_direction_must_be_a_table_of_numbers():
    for wrong in (torch.zeros(3), torch.zeros(0, 8), torch.full((2, 2), math.inf)):
        with pytest.raises(DirectionError, match=r"\.$"):
            Direction(wrong, ORIGIN)
    with pytest.raises(DirectionError, match="pooled"):
        Direction(torch.zeros(2, 2), ORIGIN, torch.zeros(1, 2))


def test_reversing_twice_and_scaling_by_parts_come_back():
    one = direction(vector=5)
    back = one.reversed()
    assert torch.equal(back.context, -one.context) and back.origin.source == "dog" and back.origin.source_count == 4
    assert torch.equal(back.reversed().context, one.context) and back.reversed().origin == one.origin
    torch.testing.assert_close(combine([(combine([(one, 0.25)]), 4)]).context, one.context)
    scaled = combine([(one, -2)]).vector
    assert one.vector is not None and scaled is not None and torch.equal(scaled, one.vector * -2)


def test_combining_adds_with_weights_whatever_the_lengths():
    one, two = direction(77, seed=1, vector=5), direction(154, seed=2, origin=Origin("day", "night", 1, 1, 2))
    both = combine([(one, 0.5), (two, -2)])
    torch.testing.assert_close(both.context, fit_tokens(one.context, 154) * 0.5 - two.context * 2)
    assert both.vector is not None and one.vector is not None and torch.equal(both.vector, one.vector * 0.5)
    assert both.origin == Origin("cat + day", "dog + night", 4, 5, 2, "")
    assert len(combine([(direction(origin=Origin("x" * 200 + str(i), "y")), 1) for i in range(4)]).origin.source) <= 300


def test_directions_that_do_not_fit_each_other_or_the_model_are_refused():
    with pytest.raises(DirectionError, match="different models"):
        combine([(direction(dim=8), 1), (direction(dim=9), 1)])
    with pytest.raises(DirectionError, match="different models"):
        combine([(direction(vector=5), 1), (direction(vector=6), 1)])
    with pytest.raises(DirectionError, match="clip skips"):
        combine([(direction(), 1), (direction(origin=Origin("a", "b")), 1)])
    with pytest.raises(DirectionError, match="at least one"):
        combine([])
    for weight in (math.nan, math.inf, True, "1"):
        with pytest.raises(DirectionError, match="weight"):
            combine([(direction(), weight)])  # type: ignore[list-item]
    direction().check_width(8)
    with pytest.raises(DirectionError, match="text width of 8, this one has 768"):
        direction().check_width(768)
    with pytest.raises(DirectionError, match="pooled"):
        direction(vector=5).check_width(8, 6)


def test_a_direction_made_in_inference_mode_serves_gradients():
    with torch.inference_mode():
        one = combine([(make_direction("cat", "dog", ["cat"], ["dog"], Encoder()), 2.0)])
    assert not one.context.is_inference()
