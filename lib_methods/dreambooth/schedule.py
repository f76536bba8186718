"""How large the steps of a training are from its beginning to its end."""

from __future__ import annotations

import math

from .settings import TrainingSettings


def rate_scale(settings: TrainingSettings, step: int) -> float:
    """What the learning rates are multiplied with at a step (from 0 on): warm-up, then the schedule, never zero."""
    warm = min(1.0, (step + 1) / settings.warm_up) if settings.warm_up else 1.0
    if settings.schedule == "constant":
        return warm
    length = max(1, settings.steps - settings.warm_up)
    left = 1 - min(1.0, max(0.0, (step - settings.warm_up) / length))
    return warm * (0.5 * (1 - math.cos(math.pi * left)) if settings.schedule == "cosine" else left)


def text_steps(settings: TrainingSettings) -> int:
    """The number of steps in which the text encoder learns."""
    return math.ceil(settings.steps * settings.text_stop) if settings.train_text else 0
