"""The settings of the cascade: one table of controls, and the request that a job is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError, check_whole, refuse_unknown
from lib_methods.files import is_file_name
from lib_methods.webui.controls import check, dropdown, number, radio, slider, text
from lib_methods.webui.table import Table

MAX_PROMPT = 4000
MAX_COUNT = 256
MAX_SEED = 2**32 - 1
SUBJECT = "{subject}"
SOLVERS = ("DDPM", "DDIM", "DPM++ 2M")
TIMESTEPS = ("even", "fast27", "smart27", "smart50", "smart100", "smart185", "super27", "super40", "super100")
THRESHOLDS = ("model", "dynamic", "static", "none")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TEXT_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "8 bit")
RESIDENCE = ("auto", "one at a time", "all")
_STAGE_SEEDS = 2**20  # between the seeds of two stages, so that they do not begin with the same noise


@dataclass(frozen=True)
class StageSettings:
    """What one stage is asked for. steps: for evenly spaced timesteps. solver: "model" for the folder's own.
    noise_level: of the smaller image, for the stages that take one; -1 for the folder's own."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance: float
    solver: str = "DDPM"
    timesteps: str = "even"
    noise_level: int = 0


@dataclass(frozen=True)
class CascadeSettings:
    """Settings of a cascade (DeepFloyd IF; Imagen, arXiv 2205.11487).

    The stages make 64, 256 and 1024 pixels. Empty prompts of the later ones mean the first one's, `{subject}` in them
    stands for it. Seed -1 is a random one; the later stages' -1 follows from the image's own. Raises `SettingsError`.
    """

    prompt: str = text(
        "Prompt", longest=MAX_PROMPT, lines=3, important=True, kept=False, always=True, about="what to generate"
    )
    negative_prompt: str = text(
        "Negative prompt", longest=MAX_PROMPT, lines=2, important=True, kept=False, about="what to avoid"
    )
    count: int = slider(
        8, 1, MAX_COUNT, 1, "How many candidates", whole=True, end=64, important=True, key=None,
        about="how many small images to choose from",
    )  # fmt: skip
    last_stage: int = slider(
        3, 1, 3, 1, "Up to stage", "1: 64, 2: 256, 3: 1024 pixels", whole=True, important=True, key=None,
        about="where to stop: stage 1 makes candidates (64 pixels), stage 2 makes 256, stage 3 makes 1024",
    )  # fmt: skip
    stage2_prompt: str = text(
        "Prompt of stage 2", "empty: as above; {subject}: the prompt above", "an oil painting of {subject}",
        longest=MAX_PROMPT, important=True, kept=False,
        about="changes the style on the way up and keeps the content; `{subject}` stands for the prompt",
    )  # fmt: skip
    stage3_prompt: str = text(
        "Prompt of stage 3", "empty: as in stage 2", longest=MAX_PROMPT, kept=False,
        about="prompt of stage 3 (default: as in stage 2)",
    )  # fmt: skip
    stage2_negative_prompt: str = text(
        "Negative prompt of stage 2", "empty: as above", longest=MAX_PROMPT, kept=False,
        about="negative prompt of stage 2 (default: as in stage 1)",
    )  # fmt: skip
    stage3_negative_prompt: str = text(
        "Negative prompt of stage 3", "empty: as in stage 2", longest=MAX_PROMPT, kept=False,
        about="negative prompt of stage 3 (default: as in stage 2)",
    )  # fmt: skip
    width: int = number(
        0, 0, 1024, "Width", "of stage 1, 0: the model's own", whole=True, key=None,
        about="width of stage 1 (default: the model's own)",
    )  # fmt: skip
    height: int = number(
        0, 0, 1024, "Height", "of stage 1, 0: the model's own", whole=True, key=None,
        about="height of stage 1 (default: the model's own)",
    )  # fmt: skip
    seed: int = number(
        -1, -1, MAX_SEED, "Seed", "-1: random; the next candidate has the next", whole=True, always=True,
        about="seed of the first candidate, the next has the next (default: a random one)",
    )  # fmt: skip
    steps: int = slider(100, 1, 1000, 1, "Steps", whole=True, end=200, about="steps of stage 1")
    guidance: float = slider(
        7.0, 1, 100, 0.5, "Guidance scale", end=30, about="guidance scale of stage 1; 1 is without guidance"
    )
    solver: str = dropdown(
        "DDPM", SOLVERS, "Solver", about="solver of stage 1; DDPM uses the variance that IF has learned"
    )
    timesteps: str = dropdown(
        "even", TIMESTEPS, "Timesteps", "a list replaces the steps",
        about="timesteps of stage 1: evenly spaced, or a published list, whose number says how many steps it has",
    )  # fmt: skip
    thresholding: str = radio(
        "model", THRESHOLDS, "Thresholding", "keeps high guidance from burning",
        about="of the predicted image in stages 1 and 2: as the model's folder says, or another way",
    )  # fmt: skip
    percentile: float = slider(
        0.0, 0, 1, 0.005, "Percentile", "0: the model's own",
        about="of dynamic thresholding: the share of values to keep in range (default: the model's, 0.95 in IF)",
    )  # fmt: skip
    upper_bound: float = slider(
        0.0, 0, 100, 0.1, "Upper bound", "0: the model's own", end=5,
        about="of dynamic thresholding: the largest range to scale back (default: the model's, 1.5 in stage 1)",
    )  # fmt: skip
    strength: float = slider(
        0.7, 0, 1, 0.05, "Strength", "of the change, with an image", about="with an image: how much of it changes"
    )
    stage2_steps: int = slider(50, 1, 1000, 1, "Steps of stage 2", whole=True, end=200)
    stage2_guidance: float = slider(4.0, 1, 100, 0.5, "Guidance scale of stage 2", end=30)
    stage2_noise_level: int = slider(
        -1, -1, 999, 1, "Noise level of stage 2", "-1: the model's own", whole=True,
        about="noise on the small image: less keeps its details and faults, more lets stage 2 invent (default: the "
        "model's own, 250 in IF, of a DreamBooth result what it was trained with)",
    )  # fmt: skip
    stage2_seed: int = number(
        -1, -1, MAX_SEED, "Seed of stage 2", "-1: from each candidate's own", whole=True,
        about="of every image in stage 2; -1: each has one that follows from its own",
    )  # fmt: skip
    stage2_solver: str = dropdown("DDPM", SOLVERS, "Solver of stage 2")
    stage2_timesteps: str = dropdown(
        "even", TIMESTEPS, "Timesteps of stage 2", "a list replaces the steps", about="timesteps of stage 2"
    )
    stage2_strength: float = slider(
        0.8, 0, 1, 0.05, "Strength in stage 2", "with an image", about="with an image: how much of it stage 2 changes"
    )
    stage3_steps: int = slider(75, 1, 1000, 1, "Steps of stage 3", whole=True, end=200)
    stage3_guidance: float = slider(9.0, 1, 100, 0.5, "Guidance scale of stage 3", end=30)
    stage3_noise_level: int = slider(100, 0, 999, 1, "Noise level of stage 3", whole=True, end=350)
    stage3_seed: int = number(
        -1, -1, MAX_SEED, "Seed of stage 3", "-1: from each candidate's own", whole=True,
        about="of every image in stage 3; -1: each has one that follows from its own",
    )  # fmt: skip
    batch: int = number(
        0, 0, 256, "Batch", "images at once, 0: what fits", whole=True, key=None,
        about="images at once; more run in slices, and the images stay the same (default: what fits)",
    )  # fmt: skip
    precision: str = dropdown("auto", PRECISIONS, "Precision", about="precision of the UNets", key=None)
    text_precision: str = dropdown(
        "auto", TEXT_PRECISIONS, "Text encoder's precision", about="8 bit needs bitsandbytes and a GPU", key=None
    )
    memory: float = number(
        0.0, 0, 10_000, "Memory, GB", "0: what the device has", about="memory limit (default: all free memory)",
        key=None,
    )  # fmt: skip
    residence: str = radio(
        "auto", RESIDENCE, "Parts in memory", "one at a time needs only the largest part's memory", key=None,
        about="one at a time needs no more memory than the largest part; all saves loading again",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                raise SettingsError(f"{name.capitalize()} must be a multiple of 8, not {getattr(self, name)}.")

    def stage(self, number: int) -> StageSettings:
        """What stage 1, 2 or 3 is asked for."""
        prompts, negatives = [self.prompt], [self.negative_prompt]
        for later in (2, 3):
            prompts.append(getattr(self, f"stage{later}_prompt").replace(SUBJECT, self.prompt) or prompts[-1])
            negatives.append(getattr(self, f"stage{later}_negative_prompt") or negatives[-1])
        words = prompts[number - 1], negatives[number - 1]
        if number == 1:
            return StageSettings(*words, self.steps, self.guidance, self.solver, self.timesteps)
        steps, guidance, level = (
            getattr(self, f"stage{number}_{name}") for name in ("steps", "guidance", "noise_level")
        )
        solver, timesteps = (self.stage2_solver, self.stage2_timesteps) if number == 2 else ("model", "even")
        return StageSettings(*words, steps, guidance, solver, timesteps, level)

    def seed_of(self, number: int, own: int) -> int:
        """The seed of an image in a stage. own: its seed in stage 1, which the later ones' follow from."""
        chosen = own if number == 1 else getattr(self, f"stage{number}_seed")
        return chosen if chosen >= 0 else (own + (number - 1) * _STAGE_SEEDS) % (MAX_SEED + 1)


CONTROLS = Table("Cascade", CascadeSettings, main="seed", lists=False)


@dataclass(frozen=True)
class CascadeRequest:
    """A job: the settings, and the files that it reads and writes.

    folders: of stages I, II and III in this order, as many as there are, or one folder that holds them. out, name: the
    images go to `out/name`. image: changed by the prompt instead of starting from noise (img2img), with `mask` only
    where the mask is white; stage II follows both, too. resume_from: candidates to take up again, instead of new ones,
    perhaps with the image that they were made from; where the prompt is empty, each keeps its own prompts. embeddings:
    the folder that keeps text embeddings, `out/text_embeddings` where it is None. Raises `SettingsError`.
    """

    folders: tuple[Path, ...]
    out: Path
    name: str = "cascade"
    settings: CascadeSettings = field(default_factory=CascadeSettings)
    image: Path | None = None
    mask: Path | None = None
    resume_from: tuple[Path, ...] = ()
    embeddings: Path | None = None

    def __post_init__(self) -> None:
        if not self.folders:
            raise SettingsError("Choose the folders of the cascade's stages, stage I first.")
        if not is_file_name(self.name) or self.name.casefold() == "text_embeddings":
            raise SettingsError(f'"{self.name[:80]}" cannot be the name of a folder here. Choose another name.')
        if self.mask is not None and self.image is None:
            raise SettingsError("A mask needs an image. Choose the image that it belongs to.")
        check_whole("The number of candidates", len(self.resume_from), 0, MAX_COUNT)

    @property
    def folder(self) -> Path:
        """Where images and log are."""
        return self.out / self.name

    @property
    def kept_embeddings(self) -> Path:
        return self.embeddings or self.out / "text_embeddings"

    def with_settings(self, **changes: Any) -> CascadeRequest:
        return replace(self, settings=replace(self.settings, **changes))


PATHS = ("out", "image", "mask", "embeddings")
LISTS = ("folders", "resume_from")


def to_json(request: CascadeRequest) -> dict[str, Any]:
    """The request as JSON values; paths are absolute."""

    def text_of(path: Path) -> str:
        return str(Path(path).expanduser().absolute())

    return {
        "name": request.name,
        "settings": asdict(request.settings),
        **{name: None if (path := getattr(request, name)) is None else text_of(path) for name in PATHS},
        **{name: [text_of(path) for path in getattr(request, name)] for name in LISTS},
    }


def from_json(values: Mapping[str, Any]) -> CascadeRequest:
    """The request of `to_json`, or of a file that somebody wrote. Raises `SettingsError`."""
    refuse_unknown(values, [entry.name for entry in fields(CascadeRequest)], "A cascade job has")
    given = {name: value for name, value in values.items() if value not in (None, "")}
    if "folders" not in given or "out" not in given:
        raise SettingsError(f"The setting {'out' if 'folders' in given else 'folders'} is missing.")
    settings = given.get("settings", {})
    if not isinstance(settings, Mapping):
        raise SettingsError("The setting settings must be an object.")
    for name in LISTS:
        listed = given.get(name, [])
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not all(isinstance(e, str) for e in listed):
            raise SettingsError(f"The setting {name} must be a list of paths.")
        given[name] = tuple(map(Path, listed))
    for name in set(PATHS) & set(given):
        if not isinstance(given[name], str):
            raise SettingsError(f"The setting {name} must be a path.")
        given[name] = Path(given[name])
    if not isinstance(given.get("name", ""), str):
        raise SettingsError("The setting name must be text.")
    return CascadeRequest(**{**given, "settings": CONTROLS.settings_from(settings)})


def name_from(prompt: str) -> str:
    """A name for a run from its prompt, such as "a-red-cat"."""
    words = re.sub(r"[^\w]+", "-", prompt.casefold()).strip("-_")[:40].strip("-_")
    return words if is_file_name(words) and words != "text_embeddings" else "cascade"


def free_name(prompt: str, out: Path) -> str:
    """As `name_from`, with a number behind it where `out` has that name already."""
    name = name_from(prompt)
    taken = {path.name.casefold() for path in out.iterdir()} if out.is_dir() else set()
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free
