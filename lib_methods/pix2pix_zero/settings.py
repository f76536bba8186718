"""Settings of pix2pix-zero: one validated, immutable object."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lib_methods.checks import SettingsError, check_choice, check_number, check_switch
from lib_methods.pictures.store import is_image_id
from lib_methods.pix2pix_zero.ddpm import DDPM
from lib_methods.pix2pix_zero.inversion import DDIM, DIRECT, InversionSettings
from lib_methods.pix2pix_zero.library import new_name
from lib_methods.pix2pix_zero.noise import Regularisation
from lib_methods.pix2pix_zero.sentences import KINDS, OBJECT
from lib_methods.pix2pix_zero.swap import swapped

SENTENCES, CAPTION = "sentences", "caption"
DIRECTIONS_FROM = (SENTENCES, CAPTION)
GRADIENT, SOFT_BLEND = "gradient", "soft blend"
GUIDANCES = (GRADIENT, SOFT_BLEND, "off")
LAYERS = ("all", "coarse", "fine")
INVERSIONS = (DDIM, DIRECT, DDPM)
REGULARISATIONS = ("paper", "as published", "off")
MASK_MODES = ("everywhere", "by word", "change white", "keep white")
ALTERNATIVES = "|"
MAX_STRENGTH = 5.0
MAX_STRUCTURE = 2.0
MAX_WORDS = 200  # characters of a word or a caption
MAX_CAPTION = 2000


@dataclass(frozen=True)
class Pix2PixZeroSettings:
    """Settings of one edit (arXiv 2302.03027).

    Important:
        source, target: what is there and what it is to become, "cat" and "dog". Targets may be several, "dog | fox":
        the images of a job take turns. Sources may be as many, or one.
        words_are: what the words mean, which decides the sentences that they are put into: "object", "style" or
        "adjective".
        direction_from: what the words' direction is the difference of: "sentences" about both words (the paper's, the
        mean over several hundred), or the "caption" with either word in it. At strength 1 the prompt is then the
        caption with the words swapped, where it is the caption; the source must be in it.
        directions: directions from the library in place of the words, "cat to dog: 1, day to night: -0.5"; several
        edits with "|", as for the target.
        caption: what the picture shows; the job's prompt if empty.
        strength: how far along the edit direction, 0 to 5; 1 is the paper's, 0 reconstructs the picture where the
        prompt is its caption.
        structure: the step of the cross-attention guidance, 0 to 2; the paper has 0.1 for pictures. For "soft blend" it
        is the share of the reference's maps, at most 1.
    To tinker with:
        start, end: the part of the sampling steps with cross-attention guidance, shares in [0, 1].
        guidance: "gradient" (the paper's), "soft blend" of the maps (no gradients, less memory), "off".
        layers: which cross-attention layers are guided: "all", "coarse" (a quarter of the latents' side and below) or
        "fine" (the others).
        inversion: "ddim" (the paper's); "direct", which makes the reconstruction exact; or "ddpm", which does so with
        the noise of Euler a.
        regularisation: of the inverted noise: "paper", "as published" (its public code) or "off", which finds the
        picture again more closely.
        refinements: how often each step of the inversion is refined, 0 to 10.
        caption_as_negative: an empty negative prompt becomes the caption, so that the CFG scale multiplies the edit
        alone (the paper's way for pictures). At strength 0 it always does. Not in txt2img.
        mask_mode: where the picture may change: "everywhere", "by word" (where `mask_word`, or the source, attends),
        or a picture in `mask` whose white is to "change" or to "keep".
        mask_level: from which share of its strongest attention on a position counts as the word's, 0 to 1.
        save_memory: compute parts of the guidance's gradient twice and hold less (gradient checkpointing).
        save_as: keep the direction of this edit in the library under a name; of the first image where the caption
        decides it. Not in the infotext.
        show: append the reconstruction, and where the word attends, to the results.

    Raises `SettingsError` with a sentence for the user.
    """

    source: str = ""
    target: str = ""
    words_are: str = OBJECT
    direction_from: str = SENTENCES
    directions: str = ""
    caption: str = ""
    strength: float = 1.0
    structure: float = 0.3
    start: float = 0.0
    end: float = 1.0
    guidance: str = GRADIENT
    layers: str = "all"
    inversion: str = DDIM
    regularisation: str = "off"
    refinements: int = 0
    caption_as_negative: bool = False
    mask_mode: str = "everywhere"
    mask_word: str = ""
    mask: str = ""
    mask_level: float = 0.3
    save_memory: bool = True
    show: bool = True
    save_as: str = ""

    def __post_init__(self) -> None:
        for name, text, longest in (
            ("Source", self.source, MAX_WORDS),
            ("Target", self.target, MAX_WORDS),
            ("Directions", self.directions, MAX_CAPTION),
            ("Caption", self.caption, MAX_CAPTION),
            ("The mask's word", self.mask_word, MAX_WORDS),
            ("The direction's name", self.save_as, MAX_WORDS),
        ):
            if not isinstance(text, str):
                raise SettingsError(f"{name} must be text.")
            if len(text) > longest:
                raise SettingsError(f"{name} is longer than {longest} characters.")
        for field in ("source", "target", "directions", "caption", "mask_word", "save_as"):
            object.__setattr__(self, field, getattr(self, field).strip())
        for label, value, top in (
            ("Strength", self.strength, MAX_STRENGTH),
            ("Structure", self.structure, MAX_STRUCTURE),
            ("Start", self.start, 1.0),
            ("End", self.end, 1.0),
            ("Refinements", self.refinements, 10),
            ("Mask level", self.mask_level, 1.0),
        ):
            check_number(label, value, 0, top)
        check_choice("What the words are", self.words_are, KINDS)
        check_choice("Direction from", self.direction_from, DIRECTIONS_FROM)
        check_choice("Guidance", self.guidance, GUIDANCES)
        check_choice("Layers", self.layers, LAYERS)
        check_choice("Inversion", self.inversion, INVERSIONS)
        check_choice("Regularisation", self.regularisation, REGULARISATIONS)
        check_choice("Mask", self.mask_mode, MASK_MODES)
        check_switch("Caption as negative prompt", self.caption_as_negative)
        check_switch("Save memory", self.save_memory)
        check_switch("Show the reconstruction", self.show)
        if self.start > self.end:
            raise SettingsError(
                f"Start ({self.start:g}) is after End ({self.end:g}), so no step would be guided. Swap them."
            )
        if self.mask != "" and not is_image_id(self.mask):
            raise SettingsError("The mask is named by its hash, not by a file name or path.")
        if self.mask_mode in MASK_MODES[2:] and not self.mask:
            raise SettingsError('There is no mask picture. Add one, or set the mask to "everywhere".')
        self._check_words()
        if self.save_as:
            object.__setattr__(self, "save_as", new_name(self.save_as))
            if len(_parts(self.directions) or self.pairs) > 1:
                raise SettingsError("Only one direction can be kept under a name: leave out the others, or the name.")
        if self.mask_mode == "by word" and not (self.mask_word or self.sources):
            raise SettingsError("Say which word of the caption the mask is to follow.")
        object.__setattr__(self, "refinements", int(self.refinements))

    def _check_words(self) -> None:
        if self.directions:
            return
        if not self.sources or not self.targets:
            missing = "target" if self.sources else "source"
            raise SettingsError(f"The {missing} is empty. Say what is in the picture and what it is to become.")
        if len({1, len(self.sources), len(self.targets)}) > 2:
            raise SettingsError(
                f"There are {len(self.sources)} sources and {len(self.targets)} targets: give as many of both, or one."
            )
        for source, target in self.pairs:
            if target.casefold() == source.casefold():
                raise SettingsError(f'Source and target are the same ("{target}"): there is nothing to change.')
            if self.direction_from == CAPTION and self.caption:
                swapped(self.caption, source, target)  # raises where that cannot be done

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that the images of a job take in turn."""
        return _parts(self.target)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources, each for the target in the same place."""
        return _parts(self.source)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Source and target that the images of a job take in turn; none where directions stand in their place."""
        count = max(len(self.sources), len(self.targets)) if self.sources and self.targets else 0
        return tuple(
            (self.sources[turn % len(self.sources)], self.targets[turn % len(self.targets)]) for turn in range(count)
        )

    def word(self, image: int) -> str:
        """Where it attends is shown, and may be the mask: for the image of a job, counted from 0. Empty for none."""
        return self.mask_word or (self.sources[image % len(self.sources)] if self.sources else "")

    @property
    def caption_is_negative(self) -> bool:
        """Whether an empty negative prompt becomes the caption. Without an edit it does: guidance then leads nowhere,
        and the result is the reconstruction."""
        return self.caption_as_negative or self.strength == 0

    @property
    def guides(self) -> bool:
        """Whether any step has cross-attention guidance."""
        return self.guidance != "off" and self.structure > 0 and self.end > self.start

    def guided_steps(self, steps: int) -> tuple[int, int]:
        """First guided step and the one after the last, counted from 0."""
        return round(self.start * steps), round(self.end * steps)

    def for_inversion(self, seed: int = 0) -> InversionSettings:
        """How the picture is inverted for a sampler without noise of its own."""
        regularisation = None
        if self.regularisation != "off":
            regularisation = Regularisation(keep_variance=self.regularisation == "paper")
        return InversionSettings(self.inversion, self.refinements, regularisation, seed % 2**32)

    def describe(self, is_img2img: bool, steps: int = 0, tab_is_empty: bool = False) -> str:
        """What will happen, in one plain line. tab_is_empty: img2img's own box is known to hold no image."""
        if self.directions:
            what = self.directions
        else:
            what = f"{' | '.join(self.sources)} to {' | '.join(self.targets)}"
            what += " (swapped in the caption)" if self.direction_from == CAPTION else ""
        whose = "the tab's image" if is_img2img else "what the prompt gives with this seed"
        whose += " (none yet: put one into the tab)" if is_img2img and tab_is_empty else ""
        parts = [f"{what} in {whose}", f"strength {self.strength:g}"]
        if self.guides:
            first, last = self.guided_steps(steps)
            when = f" on steps {first + 1}-{last} of {steps}" if steps and (self.start, self.end) != (0, 1) else ""
            parts.append(f"structure {self.structure:g} by {self.guidance}{when}")
        else:
            parts.append("no guidance by structure")
        if self.mask_mode == "by word":
            parts.append(f'only where "{self.mask_word or " | ".join(self.sources)}" is')
        elif self.mask_mode != "everywhere":
            parts.append(f"mask: {self.mask_mode}")
        return ", ".join(parts)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(ALTERNATIVES) if part.strip())


FIELDS = tuple(field.name for field in fields(Pix2PixZeroSettings))
