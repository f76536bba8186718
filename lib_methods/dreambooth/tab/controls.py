"""The tab's controls, each declared once: the form, and the order in which a page hands their values over."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from lib_methods.dreambooth.settings import KINDS, OPTIMIZERS, PRECISIONS, PRIORS, SAVED_AS, TrainingSettings

DEFAULTS = {entry.name: entry.default for entry in fields(TrainingSettings) if entry.default is not MISSING}


@dataclass(frozen=True)
class Control:
    """name: a field of `TrainingSettings`, or one of `request.FILES` and the second subject's.

    kind: "text", "whole", "number", "slider", "switch", "choice", "radio", "files", or a list of the host's:
    "checkpoint" ("base" is a title) and "lora" ("continue_from" is a name). values: choices, or a slider's lowest,
    highest and step. example: shown in an empty text.
    """

    name: str
    label: str
    kind: str
    info: str | None = None
    values: tuple[str | float, ...] = ()
    example: str = ""
    lines: int = 1


Row = tuple[Control, ...]

MAIN: tuple[Row, ...] = (
    (
        Control(
            "class_noun",
            "What is it?",
            "text",
            "the class of the subject, in one or two words",
            example="dog, coffee mug, person ...",
        ),
    ),
    (Control("base", "Base model", "checkpoint"),),
    (
        Control(
            "kind",
            "What to make",
            "radio",
            "LoRA: a small file beside the model. full: a whole new checkpoint, closer to the subject.",
            KINDS,
        ),
    ),
)
"""What every training run must be told."""

MORE: tuple[Row, ...] = (
    (
        Control("name", "Name of the result", "text", "empty: from the class"),
        Control("identifier", "Rare word", "text", "stands for the subject; empty: chosen for you"),
    ),
    (
        Control("steps", "Steps", "whole", "0: from the photos"),
        Control("rate", "Learning rate", "number", "0: from the kind"),
        Control("batch_size", "Batch size", "whole", "photos a step"),
        Control("resolution", "Resolution", "whole", "0: the model's own"),
    ),
    (
        Control("train_text", "Also train the text encoder", "switch"),
        Control("convolutions", "Also train convolutions (LoRA)", "switch"),
        Control("rank", "LoRA rank", "slider", values=(1, 128, 1)),
    ),
    (
        Control("prior", "Prior preservation", "choice", "keeps the class as it was", PRIORS),
        Control("class_images", "Class images", "whole", "how many are generated beforehand"),
        Control("prior_weight", "Prior weight", "slider", values=(0.0, 3.0, 0.05)),
    ),
    (
        Control("captions", "Captions", "switch"),
        Control("masks", "Masks", "switch"),
        Control("flip", "Also use mirrored photos", "switch"),
        Control("select_best", "Keep the best, not the last", "switch"),
    ),
    (
        Control("sample_every", "Samples every", "whole", "steps; 0: chosen"),
        Control("save_every", "Keep a copy every", "whole", "steps; 0: none"),
        Control("seed", "Seed", "whole", "the same seed gives the same result"),
    ),
    (
        Control(
            "sample_prompts",
            "Sample prompts, one per line",
            "text",
            "{subject} stands for rare word and class; empty: chosen",
            example="a photo of {subject} on the beach",
            lines=2,
        ),
    ),
    (
        Control("memory", "Memory, GB", "number", "0: what the device has"),
        Control("precision", "Precision", "choice", values=PRECISIONS),
        Control("optimizer", "Optimizer", "choice", values=OPTIMIZERS),
        Control("saved_as", "Result's precision", "choice", values=SAVED_AS),
    ),
)
"""What has a good default."""

ADVANCED: tuple[Row, ...] = (
    (Control("continue_from", "Continue from a LoRA", "lora", "its rank and layers are kept; empty: start a new one"),),
    (
        Control("caption_dropout", "Caption dropout", "slider", values=(0.0, 1.0, 0.05)),
        Control("noise_offset", "Noise offset", "slider", values=(0.0, 0.2, 0.005)),
    ),
    (Control("class_photos", "Your own class images (regularisation images), used as they are", "files"),),
    (
        Control("second_class_noun", "A second subject: what is it?", "text", "empty: none", example="mug ..."),
        Control("second_identifier", "Its rare word", "text", "empty: chosen"),
    ),
    (Control("second_photos", "Photos of the second subject", "files"),),
)
"""What people know from other trainers."""

CONTROLS = tuple(control.name for row in (*MAIN, *MORE, *ADVANCED) for control in row)
