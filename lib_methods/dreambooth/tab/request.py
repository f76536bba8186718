"""From the tab's controls, or a REST request's fields, to a training's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.dreambooth.photos.upload import Dropped
from lib_methods.dreambooth.settings import (
    KINDS,
    OPTIMIZERS,
    PRECISIONS,
    PRIORS,
    SAVED_AS,
    Concept,
    TrainingSettings,
    check_name,
)
from lib_methods.webui.table import refuse_unknown

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


SECOND = "second_"
FILES = ("class_photos", "second_photos")
MOST_CONCEPTS = 10

_WHOLE = {name for name, value in DEFAULTS.items() if isinstance(value, int) and not isinstance(value, bool)}
_NUMBERS = {name for name, value in DEFAULTS.items() if isinstance(value, float)}
_PLACES = ("photos", "base", "out", "name", "continue_from", "class_folder", "concepts")
_MOST_PROMPTS = 16


def from_controls(values: Sequence[Any]) -> dict[str, Any]:
    """The values of `CONTROLS` by name; what was left empty is left out. A second subject becomes one of "concepts"."""
    wanted = {name: value for name, value in zip(CONTROLS, values) if value is not None and value != ""}
    for name in FILES:
        if name in wanted:
            wanted[name] = uploaded(wanted[name])
    second = {
        name.removeprefix(SECOND): wanted.pop(name) for name in CONTROLS if name in wanted and name.startswith(SECOND)
    }
    if second.get("photos") or str(second.get("class_noun", "")).strip():
        wanted["concepts"] = [second]
    return wanted


def uploaded(value: Any) -> list[Path]:
    """The files of a box for uploads: gradio 3 gives open files, later ones paths; one or several, or None."""
    items = value if isinstance(value, (list, tuple)) else [value] if value else []
    return [Path(str(getattr(item, "name", item))) for item in items]


def dropped(wanted: dict[str, Any], photos: Any) -> list[Dropped]:
    """Takes "class_photos" and "concepts" out of `wanted`: the settings' own subject first. Raises SettingsError."""
    own = Dropped(photos, wanted.pop("class_photos", None) or ())
    given = wanted.pop("concepts", None) or []
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise SettingsError('"concepts" must be a list of objects with photos and class_noun.')
    if len(given) > MOST_CONCEPTS:
        raise SettingsError(f"There are too many subjects: at most {MOST_CONCEPTS} more.")
    more = []
    for entry in given:
        refuse_unknown(entry, ["photos", "class_photos", "class_noun", "identifier"], "A concept has")
        noun, identifier = entry.get("class_noun") or "", entry.get("identifier") or ""
        if not entry.get("photos") or not isinstance(noun, str) or not noun.strip() or not isinstance(identifier, str):
            raise SettingsError("Each further subject needs photos and its class.")
        more.append(Dropped(entry["photos"], entry.get("class_photos") or (), noun.strip(), identifier.strip()))
    return [own, *more]


def parse_request(
    request: Mapping[str, Any],
    *,
    photos: Path,
    base: Path,
    out: Path,
    name: str,
    continue_from: Path | None = None,
    class_folder: Path | None = None,
    concepts: Sequence[Concept] = (),
) -> TrainingSettings:
    """The settings of a training.

    request: fields of `TrainingSettings` by name. What says where things are is not taken from it but from the other
    arguments. Raises SettingsError with a sentence.
    """
    refuse_unknown(request, [*DEFAULTS, "class_noun", *_PLACES], "A run has")
    wanted = {key: value for key, value in request.items() if key not in _PLACES and value is not None}
    values: dict[str, Any] = {key: _typed(key, value) for key, value in wanted.items()}
    noun = values.pop("class_noun", "")
    if not isinstance(noun, str):
        raise SettingsError("The class noun must be text.")
    values.update(continue_from=continue_from, class_folder=class_folder, concepts=tuple(concepts))
    return TrainingSettings(photos=photos, base=base, out=out, name=name, class_noun=noun.strip(), **values)


def clean_name(text: object, class_noun: object) -> str:
    """A name for a training that is a file's name on every system: the given one, or else one from the class noun.

    Raises SettingsError where the given one cannot be one.
    """
    given = str(text or "").strip()
    if given:
        return check_name(given)
    words = re.sub(r"[^\w]+", "-", str(class_noun or "").strip().casefold()).strip("-_")[:40]
    return f"my-{words}" if words else "my-subject"


def _typed(name: str, value: Any) -> Any:
    """A control's value as the settings have it: pages give whole numbers as fractions and several prompts as lines."""
    if name == "sample_prompts":
        lines = value.splitlines() if isinstance(value, str) else value
        if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) for line in lines):
            raise SettingsError("Sample prompts must be text, one per line.")
        prompts = tuple(line.strip() for line in lines if line.strip())
        if len(prompts) > _MOST_PROMPTS:
            raise SettingsError(f"There are too many sample prompts: at most {_MOST_PROMPTS}.")
        return prompts
    if name in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)
    if name in _NUMBERS and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(DEFAULTS.get(name), str) and not isinstance(value, str):
        raise SettingsError(f"{name.replace('_', ' ').capitalize()} must be text.")
    return value.strip() if name in ("identifier", "class_prompt") else value
