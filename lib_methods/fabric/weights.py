"""The log weight of a reference token, from the settings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lib_methods.fabric.feedback import FeedbackImage


def log_weights(
    images: Sequence[FeedbackImage],
    strength: float,
    *,
    shared: bool,
    own_tokens: int,
    stored_tokens: int,
    full_tokens: int,
) -> list[float]:
    """The log of the weight of one stored token of each image, as `lib_methods.fabric.attention` takes it.

    As published, a token of a reference weighs `strength` times the image's weight. Shared, all images together have
    the budget of one: with equal scores they take strength / (1 + strength) of the attention, whatever their number
    and size.

    own_tokens: tokens of the layer in the running pass. full_tokens: tokens of the reference at full detail,
    stored_tokens: what is left of them after pooling. One stored token stands for full_tokens / stored_tokens.
    Images of weight 0 get -inf and are not counted.
    """
    counted = sum(1 for image in images if image.weight > 0)
    budget = own_tokens / (stored_tokens * counted) if shared and counted else full_tokens / stored_tokens
    # a sum of logs: the product of very small weights would be rounded to 0
    return [
        math.log(strength) + math.log(image.weight) + math.log(budget)
        if strength > 0 and image.weight > 0
        else -math.inf
        for image in images
    ]
