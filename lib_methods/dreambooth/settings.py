"""Settings of a training run."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from lib_methods.checks import SettingsError, check_choice, check_number, check_switch, check_whole
from lib_methods.files import is_file_name

KINDS = ("LoRA", "full")
PRIORS = ("auto", "images", "model", "off")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMIZERS = ("auto", "adamw", "adamw8bit", "adafactor", "prodigy")
SCHEDULES = ("constant", "cosine", "linear")
SAVED_AS = ("fp16", "bf16", "fp32", "source")

CLASS_IMAGES = "class_images"
"""The folder beside the trainings' own that all share, in `out`."""
_LARGEST_SEED = 2**32 - 1
_LONGEST_NAME = 80


def check_name(name: object) -> str:
    """The name of a training, and of what comes out of it, as it is kept. Raises `SettingsError`."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not is_file_name(name):
        raise SettingsError(
            f"The name must be a valid file name on every system: up to {_LONGEST_NAME} letters, digits, spaces, dots, "
            'dashes or underscores, no dot or space at its end, and no name that Windows reserves, such as "con".'
        )
    if name.casefold() == CLASS_IMAGES:
        raise SettingsError(f'The folder "{name}" is used for class images. Choose another name.')
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class Concept:
    """One more subject of a training: a folder with its pictures, its class, its rare word, and perhaps own images of
    the class. repeats: how often its pictures come where others come once. Raises `SettingsError`."""

    photos: Path
    class_noun: str
    identifier: str = ""
    class_folder: Path | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        _check_words(self.class_noun, self.identifier)
        check_whole("The number of repeats", self.repeats, 1, 10_000)

    @property
    def subject(self) -> str:
        """Identifier and class noun, as they stand in a prompt."""
        return f"{self.identifier} {self.class_noun}".strip()


def _check_words(class_noun: object, identifier: object) -> None:
    if not isinstance(class_noun, str) or not class_noun.strip():
        raise SettingsError('Say what the subject is, in one or two words ("dog", "coffee mug").')
    for name, text in (("class noun", class_noun), ("identifier", identifier)):
        if not isinstance(text, str) or len(text) > 60 or any(letter in text for letter in "()[]{}<>\n\\|"):
            raise SettingsError(f"The {name} must be short and plain: no brackets or other prompt syntax.")


@dataclass(frozen=True)
class TrainingSettings:
    """A training, all of it. Zero or "auto" means: chosen from the model, the photos and the memory.

    Important ones first.

    photos: the folder with the subject's pictures. base: a checkpoint file or a diffusers folder. out: the folder for
    the result. name: of the result, without an ending. class_noun: what the subject is ("dog"). kind: what comes out.
    identifier: the rare word that becomes the subject's name.

    steps: optimizer steps. rate, text_rate: learning rates of the UNet and of the text encoder. batch_size: photos a
    step; the prior's pictures come on top. accumulation: steps gathered before the weights move. train_text: the text
    encoder learns, too, up to the share text_stop of the steps. rank, alpha: of the LoRA, alpha 0 for the same as rank;
    convolutions: LoRA on these, too.

    prior: what keeps the class from turning into the subject: "images" drawn beforehand, the frozen "model"'s own
    prediction (LoRA only), or nothing. prior_weight: lambda of the paper. class_images, class_steps: how many, and
    sampling steps of each; class_folder: images of the class that are there already, in place of drawn ones. snr_gamma:
    min-SNR's gamma (Hang et al. 2023, arXiv 2303.09556), 0 for none.

    concepts: more subjects in the same training. continue_from: a LoRA whose weights, ranks and layers are the start.
    caption_dropout: the share of texts that are left empty. noise_offset: how strongly the noise of each channel is
    shifted as a whole (crosslabs.org/blog/diffusion-with-offset-noise), 0 for not.

    memory: in GiB, 0 for what the device has. ema: decay of the averaged weights, 0 for none. save_every, sample_every:
    in steps, sample_prompts: with `{subject}` for identifier and noun; select_best: keep the weights that score best.
    Raises `SettingsError`.
    """

    photos: Path
    base: Path
    out: Path
    name: str
    class_noun: str
    kind: str = "LoRA"
    identifier: str = ""
    # how long and how strongly
    steps: int = 0
    rate: float = 0.0
    text_rate: float = 0.0
    batch_size: int = 1
    accumulation: int = 1
    train_text: bool = False
    text_stop: float = 1.0
    rank: int = 16
    alpha: float = 0.0
    convolutions: bool = False
    continue_from: Path | None = None
    schedule: str = "constant"
    warm_up: int = 0
    weight_decay: float = 0.01
    clip_gradients: float = 1.0
    # the class
    prior: str = "auto"
    prior_weight: float = 1.0
    class_prompt: str = ""
    class_images: int = 100
    class_steps: int = 20
    class_folder: Path | None = None
    snr_gamma: float = 5.0
    # the photos
    resolution: int = 0
    buckets: bool = True
    flip: bool = False
    captions: bool = True
    masks: bool = True
    concepts: tuple[Concept, ...] = ()
    caption_dropout: float = 0.0
    noise_offset: float = 0.0
    # the machine
    precision: str = "auto"
    optimizer: str = "auto"
    fused_backward: bool = False
    checkpointing: bool = False
    memory: float = 0.0
    ema: float = 0.0
    # what is shown and kept
    seed: int = 0
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    save_every: int = 0
    select_best: bool = False
    saved_as: str = "fp16"

    def __post_init__(self) -> None:
        check_choice("The kind of result", self.kind, KINDS)
        check_name(self.name)
        _check_words(self.class_noun, self.identifier)
        self._check_strength()
        self._check_class()
        self._check_rest()

    def _check_strength(self) -> None:
        check_whole("The number of steps", self.steps, 0, 1_000_000)
        check_number("The learning rate", self.rate, 0, 1)
        check_number("The text encoder's learning rate", self.text_rate, 0, 1)
        check_whole("The batch size", self.batch_size, 1, 64)
        check_whole("Gradient accumulation", self.accumulation, 1, 256)
        check_number("Where the text encoder stops", self.text_stop, 0, 1)
        check_whole("The rank", self.rank, 1, 1024)
        check_number("Alpha", self.alpha, 0, 4096)
        check_choice("The schedule", self.schedule, SCHEDULES)
        check_whole("Warm-up", self.warm_up, 0, 100_000)
        check_number("Weight decay", self.weight_decay, 0, 1)
        check_number("Gradient clipping", self.clip_gradients, 0, 1000)

    def _check_class(self) -> None:
        check_choice("Prior preservation", self.prior, PRIORS)
        if self.prior == "model" and self.kind == "full":
            raise SettingsError(
                "The frozen model can only be the prior's target for a LoRA: full training changes the model itself. "
                "Choose class images."
            )
        if self.class_folder is not None and self.prior in ("model", "off"):
            raise SettingsError("A folder of class images needs prior preservation with images. Choose images or auto.")
        check_number("The prior's weight", self.prior_weight, 0, 100)
        check_whole("The number of class images", self.class_images, 1, 10_000)
        check_whole("The class images' steps", self.class_steps, 1, 1000)
        check_number("Min-SNR's gamma", self.snr_gamma, 0, 100)
        if any(concept.class_folder is not None for concept in self.concepts) and self.prior in ("model", "off"):
            raise SettingsError("A folder of class images needs prior preservation with images. Choose images or auto.")

    def _check_rest(self) -> None:
        check_whole("The resolution", self.resolution, 0, 4096)
        if self.resolution % 8 or 0 < self.resolution < 32:
            raise SettingsError("The resolution must be a multiple of 8 from 32 on.")
        check_choice("The precision", self.precision, PRECISIONS)
        check_choice("The optimizer", self.optimizer, OPTIMIZERS)
        check_choice("The result's precision", self.saved_as, SAVED_AS)
        check_number("The memory", self.memory, 0, 10_000)
        check_number("The averaged weights' decay", self.ema, 0, 0.99999)
        check_whole("The seed", self.seed, 0, _LARGEST_SEED)
        check_whole("Steps between samples", self.sample_every, 0, 1_000_000)
        check_whole("Steps between saves", self.save_every, 0, 1_000_000)
        for name in ("train_text", "convolutions", "buckets", "flip", "captions", "masks", "fused_backward"):
            check_switch(name.replace("_", " ").capitalize(), getattr(self, name))
        for name in ("checkpointing", "select_best"):
            check_switch(name.replace("_", " ").capitalize(), getattr(self, name))
        check_number("The caption dropout", self.caption_dropout, 0, 1)
        check_number("The noise offset", self.noise_offset, 0, 1)
        if self.continue_from is not None and self.kind != "LoRA":
            raise SettingsError("Only a LoRA can continue from a LoRA. Choose the kind LoRA.")
        if self.optimizer == "prodigy" and self.fused_backward:
            raise SettingsError("Prodigy needs all gradients at once. Turn off the fused backward pass.")
        if self.optimizer == "prodigy" and self.text_rate not in (0, self.rate or 1.0):
            raise SettingsError("Prodigy uses one learning rate. Leave the text encoder's at 0.")
        if self.fused_backward and self.accumulation > 1:
            raise SettingsError(
                "The fused backward pass updates weights at once and cannot accumulate gradients. Turn one of them off."
            )

    @property
    def subject(self) -> str:
        """Identifier and class noun, as they stand in a prompt."""
        return f"{self.identifier} {self.class_noun}".strip()

    @property
    def subjects(self) -> str:
        """Every subject, as `subject`, with commas between."""
        return ", ".join(concept.subject for concept in self.all_concepts)

    @property
    def all_concepts(self) -> tuple[Concept, ...]:
        """Every subject, the settings' own first."""
        return (Concept(self.photos, self.class_noun, self.identifier, self.class_folder), *self.concepts)

    @property
    def drawn_class_images(self) -> int:
        """How many class images are generated, once the prior is resolved: for each class without its own images."""
        drawn = {c.class_noun.casefold() for c in self.all_concepts if c.class_folder is None}
        return len(drawn) * self.class_images if self.prior == "images" else 0

    def about(self, concept: Concept) -> TrainingSettings:
        """The settings as they are for one of the subjects."""
        prompt = self.class_prompt if concept.class_noun == self.class_noun else ""
        return replace(
            self,
            photos=concept.photos,
            class_noun=concept.class_noun,
            identifier=concept.identifier,
            class_folder=concept.class_folder,
            class_prompt=prompt,
            concepts=(),
        )

    @property
    def true_alpha(self) -> float:
        return self.alpha or float(self.rank)
