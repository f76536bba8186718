"""From the tab's controls, or a REST request's fields, to a training's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.dreambooth.photos.upload import Dropped
from lib_methods.dreambooth.settings import Concept, TrainingSettings, check_name
from lib_methods.dreambooth.tab.controls import CONTROLS, DEFAULTS
from lib_methods.webui.table import refuse_unknown

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
    refuse_unknown(request, [*DEFAULTS, "class_noun", *_PLACES], "A training has")
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
