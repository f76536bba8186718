"""JSON metadata of other programs: NovelAI, InvokeAI, Fooocus, SwarmUI, Civitai, and requests of the WebUI's API.

Parameters that stand side by side are read. A graph (ComfyUI) or anything else is left out with a word, and is never a
prompt.
"""

from __future__ import annotations

import json
import re
from typing import Any

from standalone.engine import names

from .pairs import Infotext

UNREAD = "Unread metadata"
"""The field that names the program whose metadata was left out."""
FEWEST = 2
"""So many known fields beside the prompt make an object a set of parameters."""

OBJECT = re.compile(r'(?:\[\s*)?\{\s*"[^"\n]{0,200}"\s*:')
_INFOTEXT = re.compile(r"^[ \t]*Steps:", re.MULTILINE)  # begins no line of JSON, where keys are in quotes
_GRAPH = re.compile(r'"(?:class_type|last_node_id|nodes)"')
_TWO_NUMBERS = re.compile(r"\D{0,3}(\d{1,6})\D{1,3}(\d{1,6})\D{0,3}")
_JSON = json.JSONDecoder()
_INNER = ("sui_image_params", "image", "extraMetadata")
_KEYS = {
    "Prompt": ("prompt", "positiveprompt"),
    "Negative prompt": ("negativeprompt", "uc"),
    "Steps": ("steps",),
    "Sampler": ("sampler", "samplername"),
    "Schedule type": ("scheduler", "noiseschedule"),
    "CFG scale": ("cfgscale", "guidancescale", "scale"),
    "Seed": ("seed",),
    "Size-1": ("width",),
    "Size-2": ("height",),
    "Denoising strength": ("denoisingstrength", "strength", "initimagecreativity"),
    "Model": ("model", "basemodel", "modelname"),
}
"""The names of an infotext, and those of JSON in small letters without blanks and lines."""


def read(words: str) -> Infotext | None:
    """The parts of metadata in JSON; None where a text is none. Never raises; linear."""
    words = words.strip()
    if not OBJECT.match(words) or _INFOTEXT.search(words):
        return None
    try:
        found, end = _JSON.raw_decode(words)
    except (ValueError, RecursionError):  # cut short, or hostile
        return _unread(words)
    if end < len(words):
        return None  # a prompt that begins in this way
    fields = _flat(found)
    if not isinstance(fields.get("Prompt"), str) or len(fields.keys() - {"Prompt", "Negative prompt"}) < FEWEST:
        return _unread(words)
    written = {key: str(value).encode("utf-8", "replace").decode() for key, value in fields.items()}
    return Infotext(written.pop("Prompt"), written.pop("Negative prompt", ""), written)


def _unread(words: str) -> Infotext:
    return Infotext("", "", {UNREAD: "ComfyUI" if _GRAPH.search(words) else "another program"})


def _flat(found: Any) -> dict[str, Any]:
    """The known fields of an object of parameters, or of the one inside it."""
    for key in _INNER:
        inner = found.get(key) if isinstance(found, dict) else None
        if isinstance(inner, str) and key == "extraMetadata":
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError):
                continue
        found = inner if isinstance(inner, dict) else found
    if not isinstance(found, dict):
        return {}
    given = {re.sub(r"[\s_]", "", key).lower(): _plain(value) for key, value in found.items()}
    values = {name: next((given[key] for key in keys if given.get(key)), None) for name, keys in _KEYS.items()}
    fields = {name: value for name, value in values.items() if value is not None}
    size = _TWO_NUMBERS.fullmatch(given.get("resolution", ""))
    if size is not None and not {"Size-1", "Size-2"} & fields.keys():
        fields["Size-1"], fields["Size-2"] = size.groups()
    if given.get("requesttype") == "PromptGenerateRequest":  # NovelAI without an image
        fields.pop("Denoising strength", None)
    return fields | _sampler(fields.pop("Sampler", None), fields.pop("Schedule type", None))


def _plain(value: Any) -> str:
    """A text or a number as text, the name of a model; "" for anything else."""
    if isinstance(value, dict):  # InvokeAI's model
        value = value.get("model_name", value.get("name"))
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def _sampler(sampler: str | None, schedule: str | None) -> dict[str, str]:
    """Sampler and schedule under the names that they have here; others stay, and are left out with a word later."""
    if sampler is None:  # InvokeAI calls the sampler so
        sampler, schedule = schedule, None
    if sampler is None:
        return {}
    known = names.find_sampler(re.sub(r"_k$", "_ka", sampler), names.SAMPLERS, names.SCHEDULES)
    found = {"Sampler": known[0] if known else sampler}
    if known and known[1]:
        schedule = known[1]
    if schedule and schedule != "native":
        found["Schedule type"] = names.find_schedule(schedule, names.SCHEDULES) or schedule
    return found
