"""Settings of FABRIC: one validated, immutable object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.fabric.feedback import FeedbackImage, format_images, reader
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.controls import Images, Old, Span, check, checkbox, number, radio, slider, stored_images
from lib_methods.webui.table import Table

WEIGHTINGS = ("shared", "as published")
DETAILS = ("full", "half")
HIRES_MODES = ("off", "reuse", "re-encode")
ALL_LAYERS, COARSE, FINE = LAYERS = ("all", "coarse", "fine")
SIX, EVERY, ONE = REFERENCE_LEVELS = ("six", "every step", "one")

MAX_STRENGTH = 2.0
STRENGTH = 0.8
STRENGTH_OF_ONE = 0.5
"""What the page suggests with a single reference level, found by measurement."""


@dataclass(frozen=True)
class FabricSettings(Span):
    """Settings of FABRIC (arXiv 2307.10159) for one job.

    likes, dislikes: feedback images. The same image twice in one list counts once, with the larger weight.

    Raises `SettingsError` with a sentence for the user.
    """

    likes: tuple[FeedbackImage, ...] = stored_images(
        (), Images(reader("likes"), format_images, kind=""), "Likes", important=True,
        about="images to lean towards, each with its own weight. The same image twice counts once",
    )  # fmt: skip
    dislikes: tuple[FeedbackImage, ...] = stored_images(
        (), Images(reader("dislikes"), format_images, kind=""), "Dislikes", important=True,
        about="images to lean away from, each with its own weight",
    )  # fmt: skip
    strength: float = slider(
        STRENGTH, 0.0, MAX_STRENGTH, 0.05, "Strength", "how much the images count", important=True, axis="Strength",
        about="how much the images count; 0.8 is a good start",
        old=("fabric_max_weight",),
    )  # fmt: skip
    start: float = slider(
        0.0, 0.0, 1.0, 0.01, "Start", "share of the steps", important=True, axis="Start",
        about="where the share of the steps with feedback begins", old=("fabric_start",),
    )  # fmt: skip
    end: float = slider(
        0.8, 0.0, 1.0, 0.01, "End", "later steps are left alone", important=True, axis="End",
        about="where the share of the steps with feedback ends. Ending at 0.8 leaves the details to the prompt",
        old=("fabric_end",),
    )  # fmt: skip
    negative_weight: float = slider(
        0.5, 0.0, MAX_STRENGTH, 0.05, "Negative weight", "dislikes, as a share of the strength", axis="Negative weight",
        about="strength of dislikes, as a share of the likes' strength", old=("fabric_neg_scale",),
    )  # fmt: skip
    min_strength: float = slider(
        0.0, 0.0, MAX_STRENGTH, 0.05, "Min strength", "before start and after end",
        about="strength before Start and after End", old=("fabric_min_weight",),
    )  # fmt: skip
    weighting: str = radio(
        "shared", WEIGHTINGS, "Weighting",
        "shared: all images together count as one. as published: each counts in full",
        about="*shared*: all images together count as one, so ten likes do not drown out the prompt. *as "
        "published*: each counts in full, as in the paper and the first FABRIC extension",
    )  # fmt: skip
    colour_correction: bool = checkbox(
        True, "Keep colours fresh over many rounds", subject="Colour correction",
        about="keeps contrast and saturation where they would be without feedback",
    )  # fmt: skip
    detail: str = radio(
        "full", DETAILS, "Detail", "half is faster",
        about="*half* reads the feedback images at a quarter of the points, which is faster",
    )  # fmt: skip
    hires: str = radio(
        "reuse", HIRES_MODES, "In Hires.fix", "reuse is fast, re-encode sees the images at the new size", key="Hires",
        about="*reuse*: the second pass uses the features of the first pass's size, which is fast. *re-encode*: "
        "reads the images at the new size. *off*: no feedback in the second pass",
        old=(Old("fabric_feedback_during_high_res_fix", lambda text: "re-encode" if text == "True" else "off"),),
    )  # fmt: skip
    hires_strength: float = slider(
        1.0, 0.0, MAX_STRENGTH, 0.05, "Hires strength", "times the strength above", key="Hires strength",
        about="factor on Strength in the second pass",
    )  # fmt: skip
    cache_limit_mb: int = number(
        1024, 0, 1_000_000, "Cache limit in MB", "repeated rounds are faster", whole=True, key="cache limit",
        about="memory for features already computed; later rounds are then nearly as fast as without FABRIC",
    )  # fmt: skip
    seed: int = number(
        0, 0, 2**32 - 1, "Noise seed", "other noise on the same images", whole=True, key="seed",
        about="other noise on the feedback images",
    )  # fmt: skip
    reference_levels: str = radio(
        SIX, REFERENCE_LEVELS, "Reference levels",
        "noise levels at which the images are read: one is fastest and strongest",
        about="the noise levels at which the feedback images are read. *six*: fixed ones, of which each step takes the "
        "nearest. *every step*: each step's own, as in the paper; a first round takes longer. *one*: a low one for "
        "all steps, which is fastest and follows the likes more closely; the page sets Strength to 0.5 with it",
        always=True, axis="Reference levels",
    )  # fmt: skip
    layers: str = radio(
        ALL_LAYERS, LAYERS, "Layers", "which self-attention layers see the images",
        about="which self-attention layers see the images. *coarse*: the widest ones, at the lowest resolutions. "
        "*fine*: the others",
    )  # fmt: skip
    adain: bool = checkbox(
        False, "Match statistics (AdaIN)", subject="AdaIN",
        about="gives queries and keys the mean and standard deviation of the feedback images' (StyleAligned, arXiv "
        "2312.02133), for a stronger pull towards their style",
    )  # fmt: skip
    consistent_batch: bool = checkbox(
        False, "Consistent batch: its images share the style of the first", subject="Consistent batch", important=True,
        about="the images of one batch share the style of its first image, with likes or without. Needs a batch size "
        "above 1",
    )  # fmt: skip
    compare: bool = checkbox(
        False, "Compare", key=None, kept=False,
        about="makes every batch twice from the same seeds: without FABRIC, then with it. The buttons *Compare* on the "
        "page do it once",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        self.check_span()

    @property
    def unused(self) -> tuple[str, ...]:
        """The controls that change nothing with these settings: all of them, or none."""
        return () if self.active else CONTROLS.names

    @property
    def active(self) -> bool:
        """Whether any denoiser call can differ from one without FABRIC."""
        strongest = max(self.strength, self.min_strength)
        dislikes = self.dislikes and self.negative_weight > 0
        return strongest > 0 and bool(self.likes or dislikes or self.consistent_batch)

    def without_missing(self, store: ImageStore, *, skip: bool) -> tuple[FabricSettings, tuple[str, ...]]:
        """The settings without the images that are no longer in the store, and a sentence about those.

        skip: leave them out; else raise `SettingsError`.
        """
        settings, notes = self, []
        for name, word in (("likes", "liked"), ("dislikes", "disliked")):
            images: tuple[FeedbackImage, ...] = getattr(self, name)
            missing = [image.image_id for image in images if not store.exists(image.image_id)]
            if not missing:
                continue
            subject, were = f"{len(missing)} of the {word} images are not on this machine", "were"
            if len(missing) == 1:
                subject, were = f"The {word} image {missing[0][:8]}… is not on this machine", "was"
            if not skip:
                raise SettingsError(f"{subject}. Send the images themselves, or remove them.")
            notes.append(f"{subject} and {were} left out.")
            changed: dict[str, Any] = {name: tuple(image for image in images if image.image_id not in missing)}
            settings = replace(settings, **changed)
        return settings, tuple(notes)

    def for_hires(self) -> FabricSettings:
        """The settings of the second pass of Hires.fix."""
        factor = self.hires_strength if self.hires != "off" else 0.0
        return replace(
            self,
            strength=min(MAX_STRENGTH, self.strength * factor),
            min_strength=min(MAX_STRENGTH, self.min_strength * factor),
        )

    def strength_at(self, step: int, steps: int) -> float:
        """The likes' strength at sampling step `step` (from 0) of `steps`."""
        first, last = self.guided_steps(steps)
        return self.strength if first <= step < last else self.min_strength

    def describe(self, steps: int) -> str:
        """What will happen, in one line: "2 likes, 1 dislike, steps 1-16 of 20, strength 0.8 shared"."""
        if not (self.likes or self.dislikes or self.consistent_batch):
            return "No feedback yet: like or dislike an image, and the next ones lean towards it or away from it."
        if not self.active:
            return f"{self._counts()}, but strength 0: nothing changes."
        first, last = self.guided_steps(steps)
        parts = [self._counts()]
        parts.append(f"steps {first + 1}-{last} of {steps}" if last > first else f"none of the {steps} steps")
        parts.append(f"strength {self.strength:g} {'shared' if self.weighting == 'shared' else 'each, as published'}")
        if self.min_strength:
            parts.append(f"{self.min_strength:g} on the other steps")
        if self.detail == "half":
            parts.append("half detail")
        if self.layers != ALL_LAYERS:
            parts.append(f"{self.layers} layers")
        if self.reference_levels != SIX:
            parts.append("read at one noise level" if self.reference_levels == ONE else "read at every step's noise")
        return ", ".join(parts)

    def _counts(self) -> str:
        parts = []
        if self.likes:
            parts.append(f"{len(self.likes)} like{'s' if len(self.likes) > 1 else ''}")
        if self.dislikes:
            parts.append(f"{len(self.dislikes)} dislike{'s' if len(self.dislikes) > 1 else ''}")
        if self.consistent_batch:
            parts.append("one style per batch")
        return ", ".join(parts)


def _is_old(fields: Mapping[str, Any]) -> bool:
    """An infotext of the first published extension."""
    keys = ("fabric_max_weight", "fabric_min_weight", "fabric_start", "fabric_end", "fabric_neg_scale")
    return any(key in fields for key in keys)


def _unsaid(texts: Mapping[str, str], is_old: bool) -> dict[str, Any]:
    """The cache limit belongs to the machine, not to the image: it stays where the infotext does not name it."""
    unsaid: dict[str, Any] = {"cache_limit_mb": None}
    if is_old:
        unsaid |= {"weighting": "as published", "colour_correction": False, "hires": "off"}
    unsaid["reference_levels"] = EVERY  # all that earlier versions knew
    return unsaid


CONTROLS = Table("FABRIC", FabricSettings, ("off", "on"), is_old=_is_old, unsaid=_unsaid)
