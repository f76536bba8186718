"""Textual inversion embeddings that LoRA files bring along (`bundle_emb.<word>...`): words that the prompt may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..model import StableDiffusionModel
from ..text import CHUNK, TextEncoder
from .layer import NOT_FINITE
from .names import BUNDLE

Words = Mapping[str, Mapping[str, Tensor]]
_SINGLE = ("string_to_param", "emb_params", "*")
_ENCODERS = ("clip_l", "clip_g")


def bundled_words(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{word: {part: (n, D)}}` of the tensors whose names begin with `bundle_emb.`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        word, _, part = key.removeprefix(BUNDLE).partition(".")
        found.setdefault(word, {})[part.split(".")[0]] = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
    return found


def vectors_for(model: StableDiffusionModel, parts: Mapping[str, Tensor]) -> list[Tensor] | str:
    """The vectors (n, D) for each of the model's text encoders, or why it cannot have them."""
    encoders = list(_encoders(model))
    if len(encoders) == 2:
        given = [parts.get(part) for part in _ENCODERS]
    else:
        given = [next((parts[part] for part in (*_SINGLE, *parts) if part in parts), None)] if len(parts) == 1 else []
    vectors = [each for each in given if each is not None and each.is_floating_point() and each.ndim == 2]
    if len(vectors) != len(encoders) or len({len(each) for each in vectors}) != 1 or not 1 <= len(vectors[0]) <= CHUNK:
        return "does not fit this checkpoint"
    if any(each.shape[1] != encoder.width for each, encoder in zip(vectors, encoders)):
        return "does not fit this checkpoint"
    return vectors if all(bool(each.float().isfinite().all()) for each in vectors) else f"has {NOT_FINITE}"


def teach(model: StableDiffusionModel, words: Iterable[tuple[str, list[Tensor]]]) -> None:
    """Makes `model` read exactly these words as their vectors, and no others."""
    taught = list(words)
    for number, encoder in enumerate(_encoders(model)):
        encoder.words = {word: vectors[number] for word, vectors in taught}


def _encoders(model: StableDiffusionModel) -> Iterable[TextEncoder]:
    return (encoder for encoder in model.text_encoders if isinstance(encoder, TextEncoder))
