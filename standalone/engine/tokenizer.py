"""CLIP's byte pair tokenizer, from the vocabulary that ships in `models/clip_bpe`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from transformers import CLIPTokenizer

VOCABULARY_DIR = Path(__file__).resolve().parents[2] / "models" / "clip_bpe"
VOCABULARY_SIZE = 49408


@lru_cache(maxsize=1)
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer that SD1, SD2 and SDXL share (49,408 tokens). Needs no network."""
    return CLIPTokenizer(str(VOCABULARY_DIR / "vocab.json"), str(VOCABULARY_DIR / "merges.txt"))
