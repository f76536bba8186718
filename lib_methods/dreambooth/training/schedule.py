"""Defaults for settings left open, from the model and the number of photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lib_methods.dreambooth.settings import TrainingSettings

PAPER_UNET = 860e6  # parameters of the UNet that the usual rates are for, SD1's
FULL_RATE = 5e-6  # the paper's
LORA_RATE = 1e-4
PRODIGY_RATE = 1.0
FULL_STEPS = (250, 500, 1500)  # a photo, at least, at most; the paper: about 1000 for 4 photos
LORA_STEPS = (250, 600, 2000)
TEXT_SHARE = 0.5  # of the UNet's rate; the text encoder forgets faster
LOOKS = 5  # samples over a training, and twice as many where the best is to be found


def resolved(
    settings: TrainingSettings, *, photos: int | Sequence[int], resolution: int, unet_parameters: int
) -> TrainingSettings:
    """The settings with nothing left open. photos: how many, of each subject. resolution: the model's own, in pixels.

    The learning rate of a smaller UNet than SD1's is larger, as the inverse of its width, the square root of its size
    (Yang et al. 2022, arXiv 2203.03466); a larger one has SD1's.
    """
    full = settings.kind == "full"
    per_photo, least, most = FULL_STEPS if full else LORA_STEPS
    steps = settings.steps or sum(
        min(most, max(least, per_photo * count)) for count in ([photos] if isinstance(photos, int) else photos)
    )
    width = max(1.0, math.sqrt(PAPER_UNET / max(1, unet_parameters)))
    prodigy = settings.optimizer == "prodigy"  # finds the rate by itself, and has one for all weights
    rate = settings.rate or (PRODIGY_RATE if prodigy else min(1e-2, (FULL_RATE if full else LORA_RATE) * width))
    prior = settings.prior
    if prior == "auto":
        own = any(concept.class_folder is not None for concept in settings.all_concepts)
        prior = "images" if full or own else "model"
    looks = 2 * LOOKS if settings.select_best else LOOKS
    return replace(
        settings,
        steps=steps,
        rate=rate,
        text_rate=settings.text_rate or (rate if prodigy else TEXT_SHARE * rate),
        prior=prior,
        resolution=settings.resolution or resolution,
        sample_every=settings.sample_every or max(1, math.ceil(steps / looks)),
        warm_up=min(settings.warm_up, steps),
    )


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
