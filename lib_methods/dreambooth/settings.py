"""Settings of a training run: each is declared once, for the page, the command line, requests and settings files.

Standard library only, as the command's --help works before anything is installed.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError, check_whole, refuse_unknown
from lib_methods.files import is_file_name
from lib_methods.webui.controls import check, checkbox, dropdown, number, radio, slider, text

KINDS = ("LoRA", "full")
PRIORS = ("auto", "images", "model", "off")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMIZERS = ("auto", "adamw", "adamw8bit", "adafactor", "prodigy")
SCHEDULES = ("constant", "cosine", "linear")
SAVED_AS = ("fp16", "bf16", "fp32", "source")
SIDES = (32, 8)  # of images: at least, and a multiple of

CLASS_IMAGES = "class_images"
"""The folder beside those of the runs that all share, in `out`."""
PATHS = ("photos", "base", "out", "class_folder", "continue_from")
_LONGEST_NAME = 80
_LONGEST_PROMPT = 4000


def check_name(name: object) -> str:
    """The name of a run and of its result, as it is kept. Raises `SettingsError`."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not is_file_name(name):
        raise SettingsError(
            f"The name must be a valid file name on every system: up to {_LONGEST_NAME} letters, digits, spaces, dots, "
            'dashes or underscores, no dot or space at its end, and no name that Windows reserves, such as "con".'
        )
    if name.casefold() == CLASS_IMAGES:
        raise SettingsError(f'The folder "{name}" is used for class images. Choose another name.')
    return unicodedata.normalize("NFC", name)


def clean_name(text: object, class_noun: object) -> str:
    """The name of a run: the given one, else one from the class noun. Raises SettingsError where it is no file name."""
    given = str(text or "").strip()
    if given:
        return check_name(given)
    words = re.sub(r"[^\w]+", "-", str(class_noun or "").strip().casefold()).strip("-_")[:40]
    return f"my-{words}" if words else "my-subject"


@dataclass(frozen=True)
class Concept:
    """One more subject of a run: a folder with its photos, its class, its rare word, and perhaps the user's own class
    images. repeats: how often its photos come where others come once. Raises `SettingsError`."""

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
    for name, word in (("class noun", class_noun), ("identifier", identifier)):
        if not isinstance(word, str):
            raise SettingsError(f"The {name} must be text.")
        if len(word) > 60 or any(letter in word for letter in "()[]{}<>\n\\|"):
            raise SettingsError(f"The {name} must be short and plain: no brackets or other prompt syntax.")
    if not str(class_noun).strip():
        raise SettingsError('Say what the subject is, in one or two words ("dog", "coffee mug").')


@dataclass(frozen=True)
class TrainingSettings:
    """A training run, all of it. Zero or "auto" means: chosen from the model, the photos and the memory.

    photos: the folder of the subject's photos. base: a checkpoint file or a diffusers folder. out: the folder for the
    result. name: of the result, without an ending. class_noun, identifier: what the subject is, and the rare word that
    becomes its name. class_folder: the user's own class images, instead of generated ones. concepts: more subjects.
    continue_from: a LoRA whose weights, ranks and layers are the start. sample_prompts: with `{subject}` for
    identifier and noun. min-SNR: Hang et al. 2023, arXiv 2303.09556. noise_offset:
    crosslabs.org/blog/diffusion-with-offset-noise. prior_weight: lambda of the paper.

    Raises `SettingsError`.
    """

    photos: Path
    base: Path
    out: Path
    name: str = text("Name of the result", "empty: from the class", subject="The name", longest=1000, kept=False)
    class_noun: str = text(
        "What is it?", "the class of the subject, in one or two words", "dog, coffee mug, person ...",
        subject="The class noun", longest=1000, kept=False,
    )  # fmt: skip
    kind: str = radio(
        "LoRA", KINDS, "What to make",
        "LoRA: a small file beside the model. full: a whole new checkpoint, closer to the subject.",
        subject="The kind of result", about="kind of result", important=True,
    )  # fmt: skip
    identifier: str = text(
        "Rare word", "stands for the subject; empty: chosen for you", subject="The identifier",
        about="the subject's name in prompts (default: a rare word)", longest=1000, kept=False,
    )  # fmt: skip
    steps: int = number(
        0, 0, 1_000_000, "Steps", "0: from the photos", whole=True,
        about="optimizer steps (default: by the number of photos)",
    )  # fmt: skip
    rate: float = number(
        0.0, 0, 1, "Learning rate", "0: from the kind",
        about="learning rate (default: by the kind and the model's size)",
    )  # fmt: skip
    text_rate: float = number(
        0.0, 0, 1, "Text encoder's learning rate", about="of the text encoder (default: half of --rate)"
    )
    batch_size: int = number(
        1, 1, 64, "Batch size", "photos a step", whole=True, about="photos per step; class images come on top"
    )
    accumulation: int = number(1, 1, 256, "Gradient accumulation", about="passes accumulated per step", whole=True)
    train_text: bool = checkbox(False, "Also train the text encoder", about="also train the text encoder")
    text_stop: float = number(
        1.0, 0, 1, "Text encoder's share of the steps",
        subject="Where the text encoder stops", about="train it up to this share of the steps",
    )  # fmt: skip
    rank: int = slider(16, 1, 1024, 1, "LoRA rank", whole=True, end=128, about="of the LoRA")
    alpha: float = number(0.0, 0, 4096, "Alpha", about="of the LoRA (default: same as the rank)")
    convolutions: bool = checkbox(False, "Also train convolutions (LoRA)", about="also train convolutions (LoRA)")
    continue_from: Path | None = None
    schedule: str = dropdown("constant", SCHEDULES, "Schedule", about="learning rate schedule")
    warm_up: int = number(0, 0, 100_000, "Warm-up", about="warm-up steps", whole=True)
    weight_decay: float = number(0.01, 0, 1, "Weight decay", about="weight decay")
    clip_gradients: float = number(1.0, 0, 1000, "Gradient clipping", about="largest gradient norm, 0 for any")
    prior: str = dropdown(
        "auto", PRIORS, "Prior preservation", "keeps the class as it was",
        about="generated images, the frozen model's prediction, or nothing (default: model for a LoRA, else images)",
    )  # fmt: skip
    prior_weight: float = slider(1.0, 0, 100, 0.05, "Prior weight", end=3, about="weight of the prior's loss")
    class_prompt: str = text(
        "Class prompt", longest=_LONGEST_PROMPT, about='prompt of the class images (default: "a NOUN")'
    )
    class_images: int = number(
        100, 1, 10_000, "Class images", "how many are generated beforehand", whole=True,
        about="number of generated class images",
    )  # fmt: skip
    class_steps: int = number(
        20, 1, 1000, "Class images' steps", whole=True, about="sampling steps of each class image"
    )
    class_folder: Path | None = None
    snr_gamma: float = number(5.0, 0, 100, "Min-SNR gamma", about="gamma of min-SNR weighting, 0 for none")
    resolution: int = number(
        0, 0, 4096, "Resolution", "0: the model's own", whole=True, about="side in pixels (default: the model's own)"
    )
    buckets: bool = checkbox(True, "Buckets", about="keep the photos' aspect ratios instead of cropping all to squares")
    flip: bool = checkbox(False, "Also use mirrored photos", about="also use mirrored photos; not for faces or letters")
    captions: bool = checkbox(True, "Captions", about="use the captions beside the photos")
    also_plain: bool = checkbox(
        True, "Also without captions", about='learn photos with a caption also as "a ohwx dog", half of the time'
    )
    masks: bool = checkbox(True, "Masks", about="use the masks beside the photos")
    concepts: tuple[Concept, ...] = ()
    caption_dropout: float = slider(0.0, 0, 1, 0.05, "Caption dropout", about="share of captions left empty")
    noise_offset: float = slider(
        0.0, 0, 1, 0.005, "Noise offset", end=0.2, about="for darker and brighter images, such as 0.05"
    )
    precision: str = dropdown("auto", PRECISIONS, "Precision", about="computing precision")
    optimizer: str = dropdown("auto", OPTIMIZERS, "Optimizer", about="optimizer")
    fused_backward: bool = checkbox(False, "Fused backward pass", about="update weights during the backward pass")
    checkpointing: bool = checkbox(False, "Gradient checkpointing", about="less memory for a third more time")
    memory: float = number(
        0.0, 0, 10_000, "Memory, GB", "0: what the device has", about="memory limit (default: all free memory)"
    )
    ema: float = number(0.0, 0, 0.99999, "EMA decay", about="decay of averaged weights, such as 0.999 (default: off)")
    seed: int = number(0, 0, 2**32 - 1, "Seed", "the same seed gives the same result", whole=True)
    sample_every: int = number(
        0, 0, 1_000_000, "Samples every", "steps; 0: chosen", whole=True,
        subject="Steps between samples", about="steps between samples (default: a fifth of the steps)",
    )  # fmt: skip
    sample_prompts: tuple[str, ...] = ()
    save_every: int = number(
        0, 0, 1_000_000, "Keep a copy every", "steps; 0: none", whole=True,
        subject="Steps between saves", about="also keep a result every so many steps (default: off)",
    )  # fmt: skip
    select_best: bool = checkbox(
        False, "Keep the best, not the last", about="keep the best-scoring weights and stop early"
    )
    stages: str = dropdown("both", ("both", "1", "2"), "Stages", about="of a cascade: stage 1, its upscaler (2), both")
    small_image_noise: float = number(
        1e-5, 0, 1, "Noise on the small image", about="that a cascade's upscaler learns from; more blurs fine detail"
    )
    saved_as: str = dropdown("fp16", SAVED_AS, "Result's precision", about="precision of the result")

    def __post_init__(self) -> None:
        check(self)
        check_name(self.name)
        object.__setattr__(self, "sample_prompts", _prompts(self.sample_prompts))
        _check_words(self.class_noun, self.identifier)
        if self.prior == "model" and self.kind == "full":
            raise SettingsError(
                "The frozen model can only be the prior's target for a LoRA: full training changes the model itself. "
                "Choose class images."
            )
        own = any(concept.class_folder is not None for concept in self.all_concepts)
        if own and self.prior in ("model", "off"):
            raise SettingsError("A folder of class images needs prior preservation with images. Choose images or auto.")
        least, multiple = SIDES
        if self.resolution % multiple or 0 < self.resolution < least:
            raise SettingsError(f"The resolution must be a multiple of {multiple} from {least} on.")
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
    def generated_class_images(self) -> int:
        """How many class images are generated, once the prior is resolved: for each class without its own images."""
        nouns = {c.class_noun.casefold() for c in self.all_concepts if c.class_folder is None}
        return len(nouns) * self.class_images if self.prior == "images" else 0

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


PAPER_UNET = 860e6  # parameters of SD1's UNet, which the usual rates are for
FULL_RATE, LORA_RATE, PRODIGY_RATE = 5e-6, 1e-4, 1.0  # the first is the paper's
FULL_STEPS = (250, 500, 1500)  # per photo, at least, at most; the paper: about 1000 for 4 photos
LORA_STEPS = (250, 600, 2000)
TEXT_SHARE = 0.5  # of the UNet's rate; the text encoder forgets faster
LOOKS = 5  # samples over a run, and twice as many if the best is kept


def resolved(
    settings: TrainingSettings, *, photos: Sequence[int], resolution: int, unet_parameters: int
) -> TrainingSettings:
    """The settings with nothing left open. photos: the number for each subject. resolution: the model's, in pixels.

    A UNet smaller than SD1's gets a higher learning rate, by the inverse of its width, the square root of its size
    (Yang et al. 2022, arXiv 2203.03466); a larger one gets SD1's.
    """
    full = settings.kind == "full"
    per_photo, least, most = FULL_STEPS if full else LORA_STEPS
    steps = settings.steps or sum(min(most, max(least, per_photo * count)) for count in photos)
    width = max(1.0, math.sqrt(PAPER_UNET / max(1, unet_parameters)))
    prodigy = settings.optimizer == "prodigy"  # finds the rate by itself, one for all weights
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


def to_json(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON values; paths are absolute."""
    values = asdict(settings)
    for part in (values, *values["concepts"]):
        for name in set(PATHS) & set(part):
            part[name] = None if part[name] is None else str(Path(part[name]).expanduser().absolute())
    return {**values, "sample_prompts": list(settings.sample_prompts), "concepts": list(values["concepts"])}


def from_json(values: Mapping[str, Any]) -> TrainingSettings:
    """The settings of `to_json`, of a file that somebody wrote, or of a request. None stands for the default.

    Raises SettingsError for unknown names, for what is missing, and for wrong values.
    """
    refuse_unknown(values, [entry.name for entry in fields(TrainingSettings)], "A run has")
    for name in ("photos", "base", "out", "name"):
        if not values.get(name):
            raise SettingsError(f"The setting {name} is missing.")
    concepts = values.get("concepts") or []
    if not isinstance(concepts, Sequence) or not all(isinstance(entry, Mapping) for entry in concepts):
        raise SettingsError("The setting concepts must be a list of objects with photos and class_noun.")
    return TrainingSettings(**{**_with_paths(values), "concepts": tuple(map(_concept, concepts))})


def _concept(values: Mapping[str, Any]) -> Concept:
    refuse_unknown(values, [entry.name for entry in fields(Concept)], "A concept has")
    if not values.get("photos") or not values.get("class_noun"):
        raise SettingsError("A concept needs photos and class_noun.")
    return Concept(**_with_paths(values))


def _with_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in values.items() if value is not None and (value != "" or name not in PATHS)}
    for name in set(PATHS) & set(given):
        if not isinstance(given[name], (str, Path)):
            raise SettingsError(f"The setting {name} must be a path.")
        given[name] = Path(given[name])
    return given


def _prompts(given: object) -> tuple[str, ...]:
    """Prompts from a list, or from the lines of a text."""
    lines = given.splitlines() if isinstance(given, str) else given
    if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) for line in lines):
        raise SettingsError("Sample prompts must be text, one per line.")
    return tuple(line.strip() for line in lines if line.strip())
