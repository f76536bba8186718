"""Captions to CLIP tokens: the shipped BPE vocabulary, 77 tokens, padded with the end token as SD1 does."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from standalone.shapes.networks import TOKENS

VOCABULARY = Path(__file__).resolve().parents[2] / "models" / "clip_bpe"


@lru_cache(maxsize=1)
def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over the vocabulary in models/clip_bpe."""
    return CLIPTokenizer.from_pretrained(VOCABULARY, local_files_only=True)


@lru_cache(maxsize=100_000)
def _ids(text: str) -> tuple[int, ...]:
    return tuple(tokenizer()(text, padding="max_length", max_length=TOKENS, truncation=True)["input_ids"])


def tokenize(captions: list[str]) -> Tensor:
    """Token ids of shape (captions, 77)."""
    return torch.tensor([_ids(text) for text in captions])
