"""What the user asks of FABRIC: one validated, immutable object."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lib_methods.checks import SettingsError, check_choice, check_number, check_switch
from lib_methods.pictures.store import is_image_id

WEIGHTINGS = ("shared", "as published")
DETAILS = ("full", "half")
HIRES_MODES = ("off", "reuse", "re-encode")

MAX_WEIGHT = 4.0
MAX_STRENGTH = 2.0


@dataclass(frozen=True)
class FeedbackImage:
    """A liked or disliked picture: its id in the image store, or the beginning of it, and a weight from 0 to 4."""

    image_id: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not is_image_id(self.image_id):
            raise SettingsError("A feedback image is named by its hash, not by a file name or path.")
        check_number("The weight of a feedback image", self.weight, 0.0, MAX_WEIGHT)


@dataclass(frozen=True)
class FabricSettings:
    """Settings of FABRIC (arXiv 2307.10159) for one job.

    Important:
        likes, dislikes: feedback images. The same picture twice in one list counts once, with the larger weight.
        strength: weight of a feedback token against an own token between `start` and `end`, 0 to 2.
        start, end: the part of the sampling steps that is guided, shares in [0, 1].
        negative_weight: strength of the dislikes as a share of the likes' strength, 0 to 2.
    To tinker with:
        min_strength: the strength outside of [start, end].
        weighting: "shared" gives all images together one budget of attention, whatever their number; "as published"
        gives every
            token of every image the full strength, as the paper and the first extension do.
        colour_correction: give the guided prediction back the spread that feedback in one half of the guidance widens.
        detail: "half" pools the feedback images' tokens 2x2, which is faster.
        hires: in the second pass of Hires.fix "off", "reuse" the features of the first pass's size, or "re-encode" at
        the new size.
        hires_strength: factor on the strength in the second pass, 0 to 2.
        cache_limit_mb: memory for cached reference features in MiB; 0 keeps them for one denoiser call only.
        seed: added to the noise seed of every feedback image.

    Raises `SettingsError` with a sentence for the user.
    """

    likes: tuple[FeedbackImage, ...] = ()
    dislikes: tuple[FeedbackImage, ...] = ()
    strength: float = 0.8
    start: float = 0.0
    end: float = 0.8
    negative_weight: float = 0.5
    min_strength: float = 0.0
    weighting: str = "shared"
    colour_correction: bool = True
    detail: str = "full"
    hires: str = "reuse"
    hires_strength: float = 1.0
    cache_limit_mb: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("Strength", self.strength, 0.0, MAX_STRENGTH)
        check_number("Minimum strength", self.min_strength, 0.0, MAX_STRENGTH)
        check_number("Start", self.start, 0.0, 1.0)
        check_number("End", self.end, 0.0, 1.0)
        check_number("Negative weight", self.negative_weight, 0.0, MAX_STRENGTH)
        check_number("Hires strength", self.hires_strength, 0.0, MAX_STRENGTH)
        check_number("Cache limit", self.cache_limit_mb, 0, 1_000_000)
        check_switch("Colour correction", self.colour_correction)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise SettingsError("The noise seed must be a whole number.")
        if self.start > self.end:
            raise SettingsError(
                f"Start ({self.start:g}) lies after End ({self.end:g}): no step would be guided. Swap them."
            )
        check_choice("Weighting", self.weighting, WEIGHTINGS)
        check_choice("Detail", self.detail, DETAILS)
        check_choice("Hires.fix", self.hires, HIRES_MODES)
        object.__setattr__(self, "likes", _unique(self.likes))
        object.__setattr__(self, "dislikes", _unique(self.dislikes))

    @property
    def active(self) -> bool:
        """Whether any denoiser call can differ from one without FABRIC."""
        strongest = max(self.strength, self.min_strength)
        return strongest > 0 and bool(self.likes or (self.dislikes and self.negative_weight > 0))

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

    def guided_steps(self, steps: int) -> tuple[int, int]:
        """First guided step and the one after the last, counted from 0."""
        return round(self.start * steps), round(self.end * steps)

    def describe(self, steps: int) -> str:
        """What will happen, in one plain line: "2 likes, 1 dislike, steps 1-16 of 20, strength 0.8 shared"."""
        if not (self.likes or self.dislikes):
            return "No feedback yet: like or dislike a picture, and the next ones lean towards it or away from it."
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
        return ", ".join(parts)

    def _counts(self) -> str:
        parts = []
        if self.likes:
            parts.append(f"{len(self.likes)} like{'s' if len(self.likes) > 1 else ''}")
        if self.dislikes:
            parts.append(f"{len(self.dislikes)} dislike{'s' if len(self.dislikes) > 1 else ''}")
        return ", ".join(parts)


def _unique(images: tuple[FeedbackImage, ...]) -> tuple[FeedbackImage, ...]:
    best: dict[str, FeedbackImage] = {}
    for image in images:
        if image.image_id not in best or best[image.image_id].weight < image.weight:
            best[image.image_id] = image
    return tuple(best.values())
