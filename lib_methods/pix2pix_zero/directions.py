"""Edit directions: the difference between the mean embeddings of sentences about two words (arXiv 2302.03027, 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lib_methods.checks import SettingsError, seen
from lib_methods.pix2pix_zero.words import clean_word

CHUNK = 77
"""Tokens that CLIP reads at once."""
MAX_LABEL = 300
MAX_STRENGTH = 5.0
"""Of an edit, and of a direction in a sum, either way."""


class DirectionError(SettingsError):
    """A direction that cannot be made, combined, saved or read; the message says why in the user's words."""


class Embedded(Protocol):
    """Texts as the UNet gets them: `lib_methods.denoiser.editing.Conditioning` is one."""

    @property
    def context(self) -> Tensor:
        """Hidden states, (n, tokens, dim)."""

    @property
    def vector(self) -> Tensor | None:
        """SDXL's pooled text (and sizes), (n, width), or None."""


Embed = Callable[[list[str]], "Tensor | Embedded"]
"""Sentences -> their hidden states (n, tokens, dim), or those with a pooled vector each."""


@dataclass(frozen=True)
class Origin:
    """What a direction was made from: words, numbers of sentences, and the host's clip skip (1: the last layer).

    model: name of the checkpoint whose text encoder was used; may be empty. Texts are cut at 300 characters, and what
    cannot be seen is left out.
    """

    source: str
    target: str
    source_count: int = 1
    target_count: int = 1
    clip_skip: int = 1
    model: str = ""

    def __post_init__(self) -> None:
        for name in ("source", "target", "model"):
            text = seen(getattr(self, name))
            object.__setattr__(self, name, text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…")


@dataclass(frozen=True)
class Direction:
    """What must be added to a prompt's embedding to turn the source into the target.

    context: (tokens, dim), float32, CPU; the tokens are 77 for most, 77 n for sentences of several chunks.
    vector: the same for SDXL's pooled text, (width,); None for other models. Sizes in it cancel out to 0.

    Raises `DirectionError` for another shape and for values that are no numbers.
    """

    context: Tensor
    origin: Origin
    vector: Tensor | None = None

    def __post_init__(self) -> None:
        if self.context.dim() != 2 or 0 in self.context.shape:
            raise DirectionError("A direction must be a table of numbers, tokens by text width.")
        if self.vector is not None and (self.vector.dim() != 1 or not len(self.vector)):
            raise DirectionError("The pooled part of a direction must be a row of numbers.")
        for name in ("context", "vector"):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            with torch.inference_mode(False):  # a tensor that is made in inference mode is no use to gradients
                tensor = tensor.detach().to("cpu", torch.float32).clone()
            if not bool(torch.isfinite(tensor).all()):
                raise DirectionError("The direction holds values that are not numbers (NaN or infinite).")
            object.__setattr__(self, name, tensor)

    @property
    def text_width(self) -> int:
        """The width of the text encoder's hidden states: 768 for SD1, 1024 for SD2, 2048 for SDXL."""
        return int(self.context.shape[1])

    def check_width(self, text_width: int, vector_width: int | None = None) -> None:
        """Raises `DirectionError` if the direction was made for a model with another text encoder."""
        if self.text_width != text_width:
            raise DirectionError(
                f"The direction was made for a model with a text width of {self.text_width}, this one has "
                f"{text_width}. Build it again with this model."
            )
        if self.vector is not None and vector_width is not None and len(self.vector) != vector_width:
            raise DirectionError(
                "The direction was made for a model with another pooled embedding. Build it again with this model."
            )

    def reversed(self) -> Direction:
        """From the target to the source."""
        there = self.origin
        back = replace(
            there,
            source=there.target,
            target=there.source,
            source_count=there.target_count,
            target_count=there.source_count,
        )
        return Direction(-self.context, back, None if self.vector is None else -self.vector)


def fit_tokens(context: Tensor, tokens: int) -> Tensor:
    """An embedding, or a difference of embeddings, (..., tokens, dim), for another number of tokens.

    Longer ones are cut. Shorter ones repeat their last 77 tokens: each chunk of a prompt is embedded separately, so its
    begin and end tokens line up. The rule is linear: the mean, difference or combination may be taken before or after.
    """
    have = context.shape[-2]
    if tokens <= have:
        return context[..., :tokens, :]
    chunk = CHUNK if have % CHUNK == 0 else have
    missing = math.ceil((tokens - have) / chunk)
    return torch.cat([context, *[context[..., have - chunk :, :]] * missing], -2)[..., :tokens, :]


def mean_embedding(sentences: Sequence[str], embed: Embed, batch: int = 16) -> tuple[Tensor, Tensor | None]:
    """The mean of the sentences' embeddings: context (tokens, dim) and vector (width,) or None, float32, CPU.

    Embedded `batch` at a time; the shorter ones are brought to the number of tokens of the longest by `fit_tokens`.

    Raises `DirectionError`: no sentences, or embeddings that do not fit each other or are not finite.
    """
    if not sentences:
        raise DirectionError("A direction needs at least one sentence about each word.")
    total: Tensor | None = None
    pooled: Tensor | None = None
    for start in range(0, len(sentences), batch):
        texts = list(sentences[start : start + batch])
        found = embed(texts)
        context, vector = (found, None) if isinstance(found, Tensor) else (found.context, found.vector)
        fits = context.dim() == 3 and len(context) == len(texts)
        if not fits or (total is not None and context.shape[-1] != total.shape[-1]):
            raise DirectionError("The text encoder gave embeddings of another shape than expected.")
        # of hundreds of sentences single precision would lose digits
        added = context.detach().to("cpu", torch.float64).sum(0)
        tokens = added.shape[0] if total is None else max(added.shape[0], total.shape[0])
        total = fit_tokens(added, tokens) + (0 if total is None else fit_tokens(total, tokens))
        if vector is not None:
            row = vector.detach().to("cpu", torch.float64).sum(0)
            pooled = row if pooled is None else pooled + row
    assert total is not None
    if not bool(torch.isfinite(total).all()) or (pooled is not None and not bool(torch.isfinite(pooled).all())):
        raise DirectionError("The text encoder gave values that are not numbers (NaN).")
    count = len(sentences)
    return (total / count).float(), None if pooled is None else (pooled / count).float()


def make_direction(
    source: str,
    target: str,
    source_sentences: Sequence[str],
    target_sentences: Sequence[str],
    embed: Embed,
    *,
    clip_skip: int = 1,
    model: str = "",
) -> Direction:
    """The direction from sentences about the source to sentences about the target.

    source, target: the words, for the record. Raises `DirectionError` as `mean_embedding` does, `SettingsError` for
    words that cannot be used, and if both are the same.
    """
    source, target = clean_word(source), clean_word(target)
    if source.casefold() == target.casefold():
        raise DirectionError("Source and target are the same: there is nothing to change.")
    before, vector_before = mean_embedding(source_sentences, embed)
    after, vector_after = mean_embedding(target_sentences, embed)
    if before.shape[1] != after.shape[1]:
        raise DirectionError("The text encoder gave embeddings of another shape than expected.")
    tokens = max(len(before), len(after))
    vector = None if vector_before is None or vector_after is None else vector_after - vector_before
    origin = Origin(source, target, len(source_sentences), len(target_sentences), clip_skip, model)
    return Direction(fit_tokens(after, tokens) - fit_tokens(before, tokens), origin, vector)


def combine(parts: Sequence[tuple[Direction, float]]) -> Direction:
    """The weighted sum of several directions.

    A direction without a pooled vector counts as one that leaves it as it is. Its record names all parts.

    Raises:
        DirectionError: no parts, weights that are no finite numbers, or directions for different models.
    """
    if not parts:
        raise DirectionError("Choose at least one direction.")
    if any(isinstance(w, bool) or not isinstance(w, (int, float)) or not math.isfinite(w) for _, w in parts):
        raise DirectionError("The weight of a direction must be a finite number.")
    widths = {direction.text_width for direction, _ in parts}
    vector_widths = {len(direction.vector) for direction, _ in parts if direction.vector is not None}
    skips = {direction.origin.clip_skip for direction, _ in parts}
    if len(widths) > 1 or len(vector_widths) > 1:
        raise DirectionError("These directions were made for different models and cannot be combined.")
    if len(skips) > 1:
        raise DirectionError("These directions were made at different clip skips and cannot be combined.")
    tokens = max(len(direction.context) for direction, _ in parts)
    first = parts[0][0]
    context = torch.zeros(tokens, first.text_width, dtype=torch.float64)
    vector = torch.zeros(vector_widths.pop(), dtype=torch.float64) if vector_widths else None
    for direction, weight in parts:
        context += fit_tokens(direction.context, tokens).double() * weight
        if vector is not None and direction.vector is not None:
            vector += direction.vector.double() * weight
    if len(parts) == 1:
        return Direction(context, first.origin, vector)
    models = {direction.origin.model for direction, _ in parts}
    origins = [direction.origin for direction, _ in parts]
    origin = Origin(
        " + ".join(dict.fromkeys(part.source for part in origins)),
        " + ".join(dict.fromkeys(part.target for part in origins)),
        sum(part.source_count for part in origins),
        sum(part.target_count for part in origins),
        skips.pop(),
        models.pop() if len(models) == 1 else "",
    )
    return Direction(context, origin, vector)
