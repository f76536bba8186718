"""Settings of pix2pix-zero: one validated, immutable object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.pictures.store import mask_name
from lib_methods.pix2pix_zero.directions import MAX_STRENGTH
from lib_methods.pix2pix_zero.inversion import DDIM, DDPM, DIRECT, REGULARISATIONS
from lib_methods.pix2pix_zero.kinds import guess_kind
from lib_methods.pix2pix_zero.library import new_name
from lib_methods.pix2pix_zero.sentences import ADJECTIVE, KINDS, OBJECT, STYLE
from lib_methods.pix2pix_zero.words import swapped
from lib_methods.webui.controls import Images, Span, check, checkbox, radio, slider, stored_images, text
from lib_methods.webui.table import Table

AUTO = "auto"
_TAKEN_AS = {ADJECTIVE: "taken as adjectives", STYLE: "taken as styles"}
SENTENCES, CAPTION = "sentences", "caption"
DIRECTIONS_FROM = (SENTENCES, CAPTION)
GRADIENT, SOFT_BLEND = "gradient", "soft blend"
GUIDANCES = (GRADIENT, SOFT_BLEND, "off")
LAYERS = ("all", "coarse", "fine")
INVERSIONS = (DDIM, DIRECT, DDPM)
MASK_MODES = ("everywhere", "by word", "change white", "keep white")
ALTERNATIVES = "|"
MAX_STRUCTURE = 2.0
MAX_WORDS = 200  # characters of a word
MAX_CAPTION = 2000


@dataclass(frozen=True)
class Pix2PixZeroSettings(Span):
    """Settings of one edit (arXiv 2302.03027).

    Raises `SettingsError` with a sentence for the user.
    """

    source: str = text(
        "Source", "what is in the image", "cat", longest=MAX_WORDS, important=True,
        about="what is there: *cat*. As many as targets, or one",
    )  # fmt: skip
    target: str = text(
        "Target", 'what it becomes; separate several with "|", used in turn', "dog", longest=MAX_WORDS, important=True,
        about="what it becomes: *dog*. Separate several with a bar, *dog \\| fox*: the images of a batch use them in"
        " turn",
    )  # fmt: skip
    words_are: str = radio(
        AUTO, (AUTO, *KINDS), "The words are", "auto: guessed from the words", subject="What the words are",
        about="selects the few hundred sentences the words are put into. *auto* guesses it from the words, and the "
        "line above says what it takes them for", always=True,
    )  # fmt: skip
    direction_from: str = radio(
        SENTENCES, DIRECTIONS_FROM, "Direction from", "caption: yours, with the source swapped for the target",
        about="*sentences* about both words, as in the paper, or the *caption* with the source and with the target "
        "in it, so that at strength 1 the prompt is the caption with the words swapped. Use *caption* if the "
        "sentences do not fit the words, or if the text encoder knows little beyond its captions",
    )  # fmt: skip
    directions: str = text(
        "Directions", "instead of source and target; -1 reverses one; separate several with a bar, used in turn",
        "cat to dog: 1, day to night: -0.5", longest=MAX_CAPTION,
        about="directions from the library instead of words: *cat to dog: 1, day to night: -0.5*",
    )  # fmt: skip
    caption: str = text(
        "Caption", "what the image shows; empty: the prompt above", "a cat on a sofa", longest=MAX_CAPTION,
        important=True, about="what the image shows, if the prompt says something else. Empty: the prompt",
    )  # fmt: skip
    strength: float = slider(
        1.0, 0.0, MAX_STRENGTH, 0.05, "Strength", "how far it changes", important=True, axis="Strength",
        about="how far along the edit. 0 gives the reconstruction, if the prompt is the caption and the negative "
        "prompt is empty",
    )  # fmt: skip
    structure: float = slider(
        0.3, 0.0, MAX_STRUCTURE, 0.01, "Keep the shape", "how firmly", important=True, axis="Structure",
        subject="Structure",
        about="how firmly the form is held (the step of the cross-attention guidance; with *soft blend* the share "
        "of the reference's maps, at most 1). 0.3 is a good start; the paper uses 0.1",
    )  # fmt: skip
    start: float = slider(
        0.0, 0.0, 1.0, 0.01, "Start", "of the guidance, share of the steps",
        about="where the share of the steps with guidance begins",
    )  # fmt: skip
    end: float = slider(
        1.0, 0.0, 1.0, 0.01, "End", "of the guidance, share of the steps",
        about="where the share of the steps with guidance ends",
    )  # fmt: skip
    guidance: str = radio(
        GRADIENT, GUIDANCES, "Guidance", "soft blend: no gradients, less memory",
        about="*gradient* as in the paper; *soft blend* mixes the attention maps and needs no gradients; *off*",
    )  # fmt: skip
    layers: str = radio(
        "all", LAYERS, "Layers",
        about="which cross-attention layers are guided: *all*, *coarse* (a quarter of the latents' side and below),"
        " *fine* (the others)",
    )  # fmt: skip
    inversion: str = radio(
        DDIM, INVERSIONS, "Inversion", "direct: the reconstruction is exact",
        about="*ddim* as in the paper. *direct* ([arXiv 2310.01506](https://arxiv.org/abs/2310.01506)) stores each "
        "step's error, so the reconstruction is exact with Euler, Heun and DDIM and closer with the others. "
        "*ddpm* ([arXiv 2304.06140](https://arxiv.org/abs/2304.06140)) is for Euler a in img2img and recovers"
        " the image exactly, noise included",
    )  # fmt: skip
    regularisation: str = radio(
        "off", REGULARISATIONS, "Regularisation",
        about="keeps the inverted noise white: *paper*, *as published* (the public code, whose pyramid loses its "
        "variance), or *off*, which recovers the image more closely",
    )  # fmt: skip
    refinements: int = slider(
        0, 0, 10, 1, "Refinements", "slower, closer", whole=True,
        about="extra refinements of each inversion step: slower, closer",
    )  # fmt: skip
    caption_as_negative: bool = checkbox(
        False, "Caption as negative prompt where that is empty", subject="Caption as negative prompt",
        about="uses the caption as the negative prompt if that is empty, as in the paper. The CFG scale then "
        "multiplies the edit alone, which needs smaller scales. At strength 0 it always does; never in "
        "txt2img",
    )  # fmt: skip
    mask_mode: str = radio(
        "everywhere", MASK_MODES, "Mask",
        about="where the image may change: *everywhere*, *by word* (where the word attends), or a mask whose white "
        "areas may *change* or are to *keep*",
    )  # fmt: skip
    mask_word: str = text(
        "Word", "for the mask by word; empty: the source", "cat", longest=MAX_WORDS, subject="The mask's word",
        about="for the mask by word. Empty: the source",
    )  # fmt: skip
    mask: str = stored_images("", Images(mask_name, kind="mask"), "Mask", about="the image of the mask")
    mask_level: float = slider(
        0.3, 0.0, 1.0, 0.05, "Mask level", "lower: a larger mask",
        about="for the mask by word; a lower level makes it larger",
    )  # fmt: skip
    save_memory: bool = checkbox(True, "Save memory", about="recomputes parts of the gradient instead of storing them")
    show: bool = checkbox(
        True, "Show reconstruction and attention",
        about="appends the reconstruction, and where the word attends, to the results",
    )  # fmt: skip
    save_as: str = text(
        "Keep the next edit's direction as", "with its LoRAs and caption; replaces an older one at every Generate",
        longest=MAX_WORDS, subject="The direction's name", key=None, kept=False,
        about="a name in the library. What is kept is what this edit adds to its prompt, with its LoRAs, and with "
        "the caption if it matters",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        self.check_span()
        if self.mask_mode in MASK_MODES[2:] and not self.mask:
            raise SettingsError('There is no mask image. Add one, or set the mask to "everywhere".')
        self._check_words()
        if self.save_as:
            object.__setattr__(self, "save_as", new_name(self.save_as))
            if len(_parts(self.directions) or self.pairs) > 1:
                raise SettingsError("Only one direction can be saved under a name. Remove the others, or the name.")
        if self.mask_mode == "by word" and not (self.mask_word or self.sources):
            raise SettingsError("Enter the word of the caption that the mask should follow.")

    def _check_words(self) -> None:
        if self.directions:
            return
        if not self.sources or not self.targets:
            missing = "target" if self.sources else "source"
            raise SettingsError(f"The {missing} is empty. Enter what is in the image and what it should become.")
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

    @property
    def kind(self) -> str:
        """What the words are: as chosen, or as guessed."""
        return guess_kind([*self.sources, *self.targets]) if self.words_are == AUTO else self.words_are

    @property
    def unused(self) -> tuple[str, ...]:
        """Controls that change nothing: sentences about the words are needed where the direction comes from them."""
        return ("words_are",) if self.directions or self.direction_from == CAPTION else ()

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

    def describe(self, is_img2img: bool, steps: int = 0, tab_is_empty: bool = False) -> str:
        """What will happen, in one plain line. tab_is_empty: img2img's own box is known to hold no image."""
        if self.directions:
            what = self.directions
        else:
            what = f"{' | '.join(self.sources)} to {' | '.join(self.targets)}"
            how = "swapped in the caption" if self.direction_from == CAPTION else _TAKEN_AS.get(self.kind, "")
            what += f" ({how})" if how else ""
        whose = "the tab's image" if is_img2img else "the prompt's image with this seed"
        whose += " (none yet: add one to the tab)" if is_img2img and tab_is_empty else ""
        parts = [f"{what} in {whose}", f"strength {self.strength:g}"]
        if self.guides:
            first, last = self.guided_steps(steps)
            when = f" on steps {first + 1}-{last} of {steps}" if steps and (self.start, self.end) != (0, 1) else ""
            how = f" by {self.guidance}" if self.guidance != GRADIENT else ""
            parts.append(f"shape kept at {self.structure:g}{how}{when}")
        else:
            parts.append("shape not kept")
        if self.mask_mode == "by word":
            parts.append(f'only where "{self.mask_word or " | ".join(self.sources)}" is')
        elif self.mask_mode != "everywhere":
            parts.append(f"mask: {self.mask_mode}")
        return ", ".join(parts)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(ALTERNATIVES) if part.strip())


def _unsaid(texts: Mapping[str, str], is_old: bool) -> Mapping[str, Any]:
    """Before the kind of word was guessed, an infotext left out what the words are where they were objects."""
    told = {"words_are", "directions"} & texts.keys() or texts.get("direction_from") == CAPTION
    return {} if told else {"words_are": OBJECT}


CONTROLS = Table("pix2pix-zero", Pix2PixZeroSettings, unsaid=_unsaid)
