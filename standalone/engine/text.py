"""Text conditioning: prompts of any length, weights, clip skip, for CLIP ViT-L and OpenCLIP encoders.

A prompt is cut into chunks of 75 tokens, each encoded by itself between a start and an end token, and the results are
put one after another. Weights multiply the encoder's output token by token; in the mode "Original" the mean of the
output is restored afterwards, as the WebUI does (modules/sd_emphasis.py of v1.10.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTokenizer

from .prompts import BREAK, check_weight, parse_prompt_attention

VOCABULARY_DIR = Path(__file__).resolve().parents[2] / "models" / "clip_bpe"
VOCABULARY_SIZE = 49408


@lru_cache(maxsize=1)
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer that SD1, SD2 and SDXL share (49,408 tokens). Needs no network."""
    return CLIPTokenizer(str(VOCABULARY_DIR / "vocab.json"), str(VOCABULARY_DIR / "merges.txt"))


CHUNK = 75
START, END = 49406, 49407
COMMA = 267


@dataclass(frozen=True)
class TextOptions:
    """What the host's settings say about text. `clip_skip` counts from 1 (the last layer); `backtrack` is in tokens."""

    clip_skip: int = 1
    emphasis: str = "Original"
    backtrack: int = 20
    sdxl_clip_l_skip: bool = False


@dataclass
class Chunk:
    """75 tokens of a prompt (fewer while it is being filled) and their weights."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def framed(self, pad: int) -> tuple[list[int], list[float]]:
        """77 tokens with start and end; unused places hold `pad`, after one end token."""
        tail = CHUNK - len(self.tokens)
        tokens = [START, *self.tokens, END, *[pad] * tail]
        return tokens, [1.0, *self.weights, *[1.0] * (tail + 1)]


def split_prompt(prompt: str, options: TextOptions, words: Mapping[str, int] | None = None) -> tuple[list[Chunk], int]:
    """Cuts `prompt` into chunks, at least one. Returns them and the number of tokens up to the end of the text.

    words: names of an embedding's vectors, with how many; their tokens count on from the vocabulary's end.

    A word that would be torn from its clause at the end of a chunk moves to the next one with all that follows the
    last comma, when that comma is at most `options.backtrack` tokens back.
    """
    pieces: list[list[str | float]] = [[prompt, 1.0]] if options.emphasis == "None" else parse_prompt_attention(prompt)
    learnt = _learnt(words or {})
    chunks: list[Chunk] = []
    chunk = Chunk()
    comma = -1

    def finish() -> None:
        nonlocal chunk, comma
        chunks.append(chunk)
        chunk, comma = Chunk(), -1

    for text, weight in pieces:
        if (text, weight) == BREAK:
            finish()
            continue
        for token, following in _with_words(_ids(str(text)), learnt):
            if following and len(chunk.tokens) + following > CHUNK:
                finish()  # an embedding stays in one chunk
            if token == COMMA:
                comma = len(chunk.tokens)
            elif (
                len(chunk.tokens) == CHUNK and comma != -1 and options.backtrack and CHUNK - comma <= options.backtrack
            ):
                rest = Chunk(chunk.tokens[comma + 1 :], chunk.weights[comma + 1 :])
                chunk = Chunk(chunk.tokens[: comma + 1], chunk.weights[: comma + 1])
                finish()
                chunk = rest
            if len(chunk.tokens) == CHUNK:
                finish()
            chunk.tokens.append(token)
            chunk.weights.append(float(weight))
    count = CHUNK * len(chunks) + len(chunk.tokens)
    if chunk.tokens or not chunks:
        finish()
    return chunks, count


def _ids(text: str) -> list[int]:
    found: list[int] = clip_tokenizer()(text, add_special_tokens=False, truncation=False)["input_ids"]
    return found


def _learnt(words: Mapping[str, int]) -> list[tuple[list[int], range]]:
    """The words' own tokens and those of their vectors; the longest words first, as these count where both fit."""
    start, found = VOCABULARY_SIZE, []
    for word, count in words.items():
        found.append((_ids(word), range(start, start + count)))
        start += count
    return sorted((entry for entry in found if entry[0]), key=lambda entry: -len(entry[0]))


def _with_words(ids: list[int], learnt: list[tuple[list[int], range]]) -> Iterator[tuple[int, int]]:
    """The tokens with learnt words replaced; at the first of a word's vectors also how many there are, else 0."""
    place = 0
    while place < len(ids):
        word = next((entry for entry in learnt if ids[place : place + len(entry[0])] == entry[0]), None)
        if word is None:
            yield ids[place], 0
            place += 1
        else:
            yield from ((token, len(word[1]) if token == word[1].start else 0) for token in word[1])
            place += len(word[0])


def apply_emphasis(hidden: torch.Tensor, weights: torch.Tensor, mode: str) -> torch.Tensor:
    """Scales `hidden` (B, 77, C) by `weights` (B, 77) as `mode` says; weights of 1 leave it as it is."""
    if mode in ("None", "Ignore") or bool((weights == 1).all()):
        return hidden
    scaled = hidden * weights.to(hidden).unsqueeze(-1)
    mean = scaled.mean()
    # an untrained final norm has mean 0, give or take rounding, and nothing to restore
    if mode == "No norm" or bool(mean.abs() < 1e-5 * scaled.std()):
        return scaled
    return scaled * (hidden.mean() / mean)


class TextEncoder(nn.Module):
    """One text encoder with the tokenizer before it.

    `layer` says which hidden state conditions the UNet: "last" (with the final norm), or "penultimate" (without, as
    in SDXL). With `skippable`, clip skip counts back from the last layer and keeps the final norm, as SD1 does.
    """

    def __init__(
        self,
        transformer: nn.Module,
        *,
        pad: int = END,
        layer: str = "last",
        skippable: bool = False,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.pad, self.layer, self.skippable, self.pooled = pad, layer, skippable, pooled
        self.options: Callable[[], TextOptions] = TextOptions
        self.words: Mapping[str, torch.Tensor] = {}  # embeddings that LoRAs bring along, (n, width); engine.lora's

    @property
    def body(self) -> nn.Module:
        """The part with the layers; transformers from 5.6 on has no `text_model` level in CLIPTextModel."""
        return getattr(self.transformer, "text_model", self.transformer)

    @property
    def width(self) -> int:
        """Of the vectors that tokens become."""
        return int(self._token_embedding.weight.shape[1])

    @property
    def _token_embedding(self) -> nn.Embedding:
        embedding = self.body.get_submodule("embeddings.token_embedding")
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def final_norm(self) -> nn.Module:
        norm = self.body.final_layer_norm
        assert isinstance(norm, nn.Module)
        return norm

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without start, end and padding; one for each vector of a LoRA's embedding."""
        learnt = _learnt({word: len(vectors) for word, vectors in self.words.items()})
        return [[token for token, _ in _with_words(_ids(text), learnt)] for text in texts]

    def get_target_prompt_token_count(self, token_count: int) -> int:
        """The tokens that a prompt may have before it needs one more chunk."""
        return max(1, -(-token_count // CHUNK)) * CHUNK

    def process_texts(self, texts: Sequence[str]) -> tuple[list[list[Chunk]], int]:
        """The chunks of every text, and the largest number of tokens."""
        words = {word: len(vectors) for word, vectors in self.words.items()}
        parts = [split_prompt(text, self.options(), words) for text in texts]
        return [chunks for chunks, _ in parts], max((count for _, count in parts), default=0)

    def forward(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encodes `texts`. Hidden states (B, 77 * chunks, C), and the pooled state of the first chunk or None."""
        options = self.options()
        batches, _ = self.process_texts(texts)
        device = next(self.transformer.parameters()).device
        parts: list[torch.Tensor] = []
        pooled: torch.Tensor | None = None
        if options.emphasis in ("Original", "No norm"):
            for weight in {weight for chunks in batches for chunk in chunks for weight in chunk.weights}:
                check_weight(weight, "attention weight")
        for index in range(max(len(chunks) for chunks in batches)):
            framed = [(chunks[index] if index < len(chunks) else Chunk()).framed(self.pad) for chunks in batches]
            tokens = torch.tensor([t for t, _ in framed], device=device)
            weights = torch.tensor([w for _, w in framed], device=device)
            hidden, state = self.encode(tokens, options)
            pooled = state if index == 0 else pooled
            parts.append(apply_emphasis(hidden, weights, options.emphasis))
        return torch.cat(parts, dim=1), pooled

    def encode(self, tokens: torch.Tensor, options: TextOptions) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs the transformer on `tokens` (B, 77); those beyond the vocabulary mean the vectors of `words`."""
        learnt = tokens >= VOCABULARY_SIZE
        with self._vectors_at(learnt, tokens) if self.words else nullcontext():
            output = self.transformer(input_ids=tokens.where(~learnt, 0), output_hidden_states=True)
        skip = max(1, options.clip_skip)
        states = output.hidden_states
        if self.layer == "penultimate":
            hidden = states[-min(skip, len(states))] if options.sdxl_clip_l_skip and not self.pooled else states[-2]
        elif self.skippable and skip > 1:
            hidden = self.final_norm(states[-min(skip, len(states))])
        else:
            hidden = output.last_hidden_state
        return hidden, output.text_embeds if self.pooled else None

    @contextmanager
    def _vectors_at(self, learnt: torch.Tensor, tokens: torch.Tensor) -> Iterator[None]:
        """Within the block the embedding gives the words' vectors at the places that `learnt` marks."""

        def replaced(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            table = torch.cat([vectors.to(output) for vectors in self.words.values()])
            return torch.where(learnt[..., None], table[(tokens - VOCABULARY_SIZE).clamp(min=0)], output)

        handle = self._token_embedding.register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()
