"""Infotexts and JSON metadata of other programs, and what forums, chats and mails make of infotexts.

Read are: the WebUI's own form; parameters over several lines or one per line (Easy Diffusion); everything
in one line; parameters between "|" or ";", in a list or behind "Settings:"; quoted, fenced and bold text of forums;
lines of templates after the parameters, as the Dynamic Prompts extension writes them; the negative prompt after "-"
(Draw Things); full-width punctuation ("Steps：20，Seed：7") and decimal commas.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from standalone.engine import names

from .pairs import NEGATIVE, Infotext, Pair, pairs, with_prompts

FEWEST = 3
"""So many pairs make a line of parameters, as in the WebUI."""

_STEPS = re.compile(r"\s*steps\s*:\s*\d+\s*(?:[,|;]|$)", re.IGNORECASE)
_INLINE_STEPS = re.compile(r"(?:^|(?<=[\s,.;|]))Steps:\s*\d+\s*[,|;]")
_SEPARATOR = re.compile(r"steps\s*:\s*\d+\s*([|;])", re.IGNORECASE)
_KEY = re.compile(r"\s*\w[\w \-/]{1,60}:")
_TEMPLATE = re.compile(r"\s*((?:Negative )?Template):[ \t]*")
_PROMPT = re.compile(r"(?:positive )?prompt:[ \t]*", re.IGNORECASE)
_NEGATIVE = re.compile(r"negative(?: prompt)?:[ \t]*", re.IGNORECASE)
_FENCE = re.compile(r"\s*```\w*\s*")
_BOLD = re.compile(r"\*\*(\w[\w \-/]{1,40})(?::\*\*|\*\*:)")
_BREAK = re.compile(r"\s*<br\s*/?>\s*", re.IGNORECASE)
_NEGATIVE_INSIDE = re.compile(r"negative prompt:", re.IGNORECASE)
_WEBUI = "Steps, Sampler, Schedule type, CFG scale, Seed, Size, Model, Model hash, Clip skip, Denoising strength"
_NAMES = {name.lower(): name for name in _WEBUI.split(", ")}
_NAMES |= {
    "cfg": "CFG scale",
    "guidance scale": "CFG scale",
    "sampling method": "Sampler",
    "sampling steps": "Steps",
    "scheduler": "Schedule type",
    "resolution": "Size",
    "checkpoint": "Model",
    "clipskip": "Clip skip",
    "denoise": "Denoising strength",
    "hires scale": "Hires upscale",
    "hires strength": "Denoising strength",
    "width": "Size-1",
    "height": "Size-2",
}
"""Names in other spellings, as people and other programs write them."""
_BEFORE_KEY = re.compile(
    rf"\s*(?:[-*•]\s+|(?:settings|parameters|params|generation (?:data|parameters))\s*:\s*)"
    rf"(?=(?:{'|'.join(_NAMES)}|(?:negative )?prompt)\s*:)",
    re.IGNORECASE,
)
"""What people write in front of the parameters: a list's mark, or a title in the same line."""
_KNOWN = re.compile(rf"(?:^|(?<=[\s,.;|]))(?:{'|'.join(_NAMES)})\s*:", re.IGNORECASE)
_WIDE_LABEL = re.compile(r"\s*(?:(?:positive )?prompt|negative(?: prompt)?)\s*：", re.IGNORECASE)
_WIDE = re.compile(rf"(?:^\s*(?:{'|'.join(_NAMES)})|(?:^|(?<=[\s,.;|，。；｜]))Steps)\s*[:：].*", re.IGNORECASE)


def read_foreign(text: str) -> Infotext:
    """The parts of an infotext of unknown origin. Never raises; linear."""
    lines = _bare_lines(text)
    first, last = _place(lines)
    if first is None:
        return _inline(lines)
    negative = [line for line in lines[first:last] if _NEGATIVE.match(line.strip())]
    found = _named(_joined(line for line in lines[first:last] if line not in negative))
    if len(found) < FEWEST:
        return Infotext(*_prompts(lines, labels=False), {})
    before = [*lines[:first], *negative]
    if before and before[-1].startswith("-") and any(pair.key == "Seed Mode" for pair in found):  # Draw Things
        before[-1] = f"{NEGATIVE} {before[-1][1:]}"
    return with_prompts(*_prompts(before), [*found, *_templates(lines[last:])])


def _bare_lines(text: str) -> list[str]:
    """The lines of a text, without what mails and forums put around them."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip("\0").strip()
    if "\n" not in text:
        text = _BREAK.sub("\n", text)
    lines = [_narrow(line) for line in text.split("\n")]
    lines = [_BEFORE_KEY.sub("", line.lstrip("\u200b\ufeff"), count=1) for line in lines]
    if all(line.startswith(">") for line in lines if line.strip()):
        lines = [line[1:].removeprefix(" ") for line in lines]
    if _FENCE.fullmatch(lines[0]) and len(lines) > 1:
        lines = [line for line in lines if not _FENCE.fullmatch(line)]
    if any((bold := _BOLD.match(line)) and bold[1].lower() in _NAMES for line in lines):
        lines = [_BOLD.sub(r"\1:", line) for line in lines]
    return lines or [""]


def _narrow(line: str) -> str:
    """A line with ASCII punctuation in its parameters where full-width was typed; a prompt keeps its own."""
    if "：" not in line:
        return line
    line = _WIDE_LABEL.sub(lambda label: label[0].replace("：", ":"), line, count=1)
    return _WIDE.sub(lambda parameters: unicodedata.normalize("NFKC", parameters[0]), line, count=1)


def _place(lines: Sequence[str]) -> tuple[int | None, int]:
    """The lines with the parameters: the first, and the one after the last. None: they do not begin a line."""
    first = next((index for index in range(len(lines) - 1, -1, -1) if _STEPS.match(lines[index])), None)
    if first is None:
        return None, len(lines)
    last = first + 1
    while last < len(lines) and _belongs(lines[last - 1], lines[last]):
        last += 1
    single = len(pairs(lines[first])) < FEWEST and _SEPARATOR.search(lines[first]) is None
    while single and first > 0 and _first_key(lines[first - 1]) in _NAMES:
        first -= 1  # one parameter a line, and "Steps" is not the first of them
    return first, last


def _belongs(before: str, line: str) -> bool:
    """Whether a line after one of the parameters continues them."""
    return not _TEMPLATE.match(line) and (before.rstrip().endswith((",", "|")) or _KEY.match(line) is not None)


def _inline(lines: Sequence[str]) -> Infotext:
    """A text whose parameters do not begin a line: they stand behind the prompts, or are the last line all the same.

    A last line without a single known name is a prompt: "photo, style: oil, mood: dark, light: soft".
    """
    *before, last = lines
    place = next(reversed(list(_INLINE_STEPS.finditer(last))), None) or _KNOWN.search(last)
    start = place.start() if place else len(last)
    if _first_key(last) in _NAMES or (before and _KEY.match(last) and not _NEGATIVE.match(last) and place):
        start = 0
    found = _named(last[start:])
    if len(found) < FEWEST:
        return Infotext(*_prompts(lines, labels=False), {})
    if start == 0:
        return with_prompts(*_prompts(before), found)
    head = "\n".join([*before, last[:start]]).rstrip(" ,;|")
    inside = _NEGATIVE_INSIDE.search(head)
    prompt, negative = (head[: inside.start()], head[inside.end() :]) if inside else (head, "")
    prompt, negative = prompt.strip().rstrip("|").rstrip(), negative.strip()
    named = _PROMPT.match(prompt)
    return with_prompts(prompt[named.end() :] if named else prompt, negative, found)


def _first_key(line: str) -> str:
    return line.partition(":")[0].strip().lower()


def _named(line: str) -> list[Pair]:
    """The pairs of a line of parameters, under the names that the WebUI gives them."""
    if separator := _SEPARATOR.search(line):
        line = ", ".join(part.strip().rstrip(",") for part in line.split(separator[1]))
    found = pairs(line)
    known = {pair.key for pair in found}
    return [
        pair
        if (name := _NAMES.get(pair.key.lower(), pair.key)) in known or name[:-2] in known
        else pair._replace(key=name)
        for pair in found
    ]


def _joined(lines: Iterable[str]) -> str:
    """Lines of parameters as one."""
    return ", ".join(stripped for line in lines if (stripped := line.strip().rstrip(",").rstrip()))


def _templates(lines: Sequence[str]) -> Iterator[Pair]:
    """The templates behind the parameters, each of one line or several; anything else there is left out."""
    key, texts = "", list[str]()
    for line in [*lines, "Template:"]:
        match = _TEMPLATE.match(line)
        if match is None:
            texts.append(line)
            continue
        if key:
            yield Pair(key, "\n".join(texts).strip(), True)
        key, texts = match[1], [line[match.end() :]]


def _prompts(lines: Sequence[str], labels: bool = True) -> tuple[str, str]:
    """Prompt and negative prompt of the lines before the parameters, without blanks around the lines.

    labels: also know what people write in front of the prompts, "Prompt:" and "Negative:".
    """
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in (line.strip() for line in lines):
        match = _NEGATIVE.match(line)
        if match is not None and (labels or line.startswith(NEGATIVE)):
            negative = negative or []
            line = line[match.end() :]
        (prompt if negative is None else negative).append(line)
    if labels and prompt and (named := _PROMPT.match(prompt[0])):
        prompt[0] = prompt[0][named.end() :]
    return "\n".join(prompt).strip(), "\n".join(negative or []).strip()


UNREAD = "Unread metadata"
"""The field that names the program whose metadata was left out."""
_FEWEST_FIELDS = 2
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


def read_metadata(words: str) -> Infotext | None:
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
    if not isinstance(fields.get("Prompt"), str) or len(fields.keys() - {"Prompt", "Negative prompt"}) < _FEWEST_FIELDS:
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
    given = {re.sub(r"[\s_]", "", key).lower(): _value(value) for key, value in found.items()}
    values = {name: next((given[key] for key in keys if given.get(key)), None) for name, keys in _KEYS.items()}
    fields = {name: value for name, value in values.items() if value is not None}
    size = _TWO_NUMBERS.fullmatch(given.get("resolution", ""))
    if size is not None and not {"Size-1", "Size-2"} & fields.keys():
        fields["Size-1"], fields["Size-2"] = size.groups()
    if given.get("requesttype") == "PromptGenerateRequest":  # NovelAI without an image
        fields.pop("Denoising strength", None)
    return fields | _sampler(fields.pop("Sampler", None), fields.pop("Schedule type", None))


def _value(value: Any) -> str:
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
