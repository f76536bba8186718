"""A cascade's folders: which stage each one holds, and its parts, from configurations and headers alone.

The layout is diffusers': DeepFloyd/IF-I-M-v1.0, IF-II-M-v1.0 and stabilityai/stable-diffusion-x4-upscaler as published,
in any subset. Nothing is downloaded, and nothing is known of a stage that its files do not say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lib_methods.checkpoints.folder import TEXT_WEIGHTS, UNET_WEIGHTS, Weights, part_weights, read_json
from lib_methods.errors import CheckpointError
from lib_methods.safetensors import read_header

NAMES = {1: "stage I (text to image)", 2: "stage II (super-resolution)", 3: "stage III (latent upscaler)"}
NOISE_LEVEL = "steer_noise_level"
"""In the metadata of a stage II's weights: the noise level of the smaller image that they were trained with."""
_PUBLISHED_LEVEL = 250  # IF's
TOKENS = 77  # that IF was trained with, though T5 takes more
_HASHED = 2**16  # bytes at a file's ends and middle, which tell two models of one shape apart
_LARGEST = 100_000  # number in a configuration
_WHOLE = (
    "sample_size", "block_out_channels", "cross_attention_dim", "encoder_hid_dim", "latent_channels",
    "num_class_embeds", "d_model", "d_ff", "num_heads", "hidden_size", "intermediate_size", "num_attention_heads",
)  # fmt: skip
_NOISE_SCHEDULERS = {2: "image_noising_scheduler", 3: "low_res_scheduler"}


@dataclass(frozen=True, eq=False)
class Part:
    """A network of a stage. name: its folder within the stage's, `folder`."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    weights: Weights

    @cached_property
    def numbers(self) -> int:
        """How many numbers its weights are."""
        return sum(head.count for head in self.weights.heads.values())

    @cached_property
    def digest(self) -> str:
        """Names the weights without reading all of them: from the headers, and from pieces of every file."""
        found = hashlib.sha256()
        for file in self.weights.files:
            size = file.stat().st_size
            found.update(f"{file.name} {size} ".encode())
            with file.open("rb") as opened:
                for start in (0, size // 2, max(0, size - _HASHED)):
                    opened.seek(start)
                    found.update(opened.read(_HASHED))
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A folder of one stage. number: 1, 2 or 3. scheduler: the configuration of the noise schedule, noising: of the
    smaller image's. text: None where the folder has no text encoder. vae: of stage III."""

    number: int
    folder: Path
    unet: Part
    scheduler: Mapping[str, Any]
    noising: Mapping[str, Any] | None = None
    text: Part | None = None
    vae: Part | None = None

    @property
    def side(self) -> int:
        """Of its usual images, in pixels; of stage III, that of the latents."""
        size = self.unet.config.get("sample_size")
        return int(max(size) if isinstance(size, list) else size or 64)

    @property
    def channels(self) -> int:
        """Of what it denoises."""
        taken = int(self.unet.config["in_channels"])
        return {1: taken, 2: taken // 2, 3: int(self.vae.config["latent_channels"]) if self.vae else 4}[self.number]

    @property
    def text_width(self) -> int:
        """Of the text embeddings that its UNet takes."""
        return int(self.unet.config.get("encoder_hid_dim") or self.unet.config["cross_attention_dim"])

    @property
    def multiple(self) -> int:
        """What its images' sides must be a multiple of: the UNet halves them at every level but one."""
        return max(8, 2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def noise_level(self) -> int:
        """Of the smaller image, unless another one is asked for: what DreamBooth trained with, else as published."""
        told = read_header(self.unet.weights.files[0]).metadata.get(NOISE_LEVEL, "")
        return int(told) if told.isdecimal() and len(told) < 6 else _PUBLISHED_LEVEL

    @property
    def factor(self) -> int:
        """How much larger its images are than its latents; 1 in pixels."""
        return 1 if self.vae is None else int(2 ** (len(self.vae.config["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Cascade:
    """The stages that there are, in order; each with a text encoder, perhaps another folder's."""

    stages: tuple[Stage, ...]

    def stage(self, number: int) -> Stage | None:
        return next((stage for stage in self.stages if stage.number == number), None)


def read_cascade(folders: Sequence[Path]) -> Cascade:
    """The stages in `folders`, which come in the order I, II, III; a folder may also hold them as folders within.

    Raises CheckpointError, which names the folder and the file: missing, pickled, damaged, no stage of a cascade, two
    of one stage, the wrong order, or text embeddings of another width.
    """
    stages: list[Stage] = []
    for folder in folders:
        stages += _within(Path(folder).expanduser())
    for before, after in zip(stages, stages[1:]):
        if before.number == after.number:
            raise CheckpointError(
                f"{before.folder.name} and {after.folder.name} both hold {NAMES[before.number]}. Choose one of them."
            )
        if before.number > after.number:
            raise CheckpointError(
                f"The stages are in the wrong order: {before.folder.name} holds {NAMES[before.number]} and comes "
                f"before {after.folder.name}, which holds {NAMES[after.number]}. Put {after.folder.name} first."
            )
    return Cascade(tuple(_with_text(stage, stages) for stage in stages))


def find_folders(places: Sequence[Path]) -> dict[str, Path]:
    """The folders in `places` that look like stages, or like several, by name; the first of a name counts."""
    found: dict[str, Path] = {}
    for place in places:
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if holds_stages(folder):
                found.setdefault(folder.name, folder)
    return found


def holds_stages(folder: Path) -> bool:
    """Whether a folder looks like a stage, or holds folders that do."""
    return any((inner / "unet" / "config.json").is_file() for inner in _stage_folders(folder))


def is_cascade(base: Path) -> bool:
    """Whether a base model is a folder of a pixel cascade: a stage without a VAE, or a folder that holds stages."""
    return not (base / "vae").is_dir() and holds_stages(base)


def _stage_folders(folder: Path) -> list[Path]:
    """The folder itself if a model is in it, otherwise the model folders within, also as in the hub's cache."""
    if (folder / "unet").is_dir() or (folder / "model_index.json").is_file():
        return [folder]
    return sorted(
        {path.parents[1] for pattern in ("*", "snapshots/*") for path in folder.glob(f"{pattern}/unet/config.json")}
    )


def _within(folder: Path) -> list[Stage]:
    """The stage of a folder, or those of the folders in it."""
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder.name}. Check the path of the cascade's stage.")
    inner = _stage_folders(folder)
    if not inner:
        raise CheckpointError(
            f"The folder {folder.name} holds no stage of a cascade: it has no unet/config.json. Choose the folder that "
            "has model_index.json in it."
        )
    return sorted((read_stage(path) for path in inner), key=lambda stage: stage.number)


def read_stage(folder: Path) -> Stage:
    """The stage that a folder holds. Raises CheckpointError."""
    kind = ""
    if (folder / "model_index.json").is_file():
        kind = str(read_json(folder, "model_index.json").get("_class_name", ""))
    if kind and not (folder / "unet").is_dir():
        raise CheckpointError(
            f"The folder {folder.name} holds {kind[:60]} without a UNet, not a stage of a pixel cascade. Choose a "
            "DeepFloyd IF folder."
        )
    config = read_json(folder, "unet/config.json")
    has_vae = (folder / "vae").is_dir()
    number = _number(folder, config, has_vae, kind)
    vae = _part(folder, "vae", UNET_WEIGHTS) if number == 3 else None
    text = _part(folder, "text_encoder", TEXT_WEIGHTS) if (folder / "text_encoder" / "config.json").is_file() else None
    if number == 3 and text is None:
        raise CheckpointError(f"The folder {folder.name} has no text_encoder/config.json; download the whole model.")
    if text is not None and not (folder / "tokenizer").is_dir():
        raise CheckpointError(f"The folder {folder.name} has no tokenizer folder; download the whole model.")
    noising = None
    if number > 1:
        name = f"{_NOISE_SCHEDULERS[number]}/scheduler_config.json"
        noising = read_json(folder, name)
        _check_schedule(noising, folder, name)
    scheduler = read_json(folder, "scheduler/scheduler_config.json")
    _check_schedule(scheduler, folder, "scheduler/scheduler_config.json")
    unet = _part(folder, "unet", UNET_WEIGHTS)
    return Stage(number, folder, unet, scheduler, noising, text, vae)


def _part(folder: Path, name: str, stem: str) -> Part:
    config = read_json(folder, f"{name}/config.json")
    for key in _WHOLE:
        value = config.get(key)
        for number in [] if value is None else value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _LARGEST:
                told = f"{name}/config.json in the folder {folder.name} is damaged: {key} is {str(value)[:40]!r}."
                raise CheckpointError(f"{told} Download it again.")
    return Part(name, folder, config, part_weights(folder, name, stem))


def _number(folder: Path, config: Mapping[str, Any], has_vae: bool, kind: str) -> int:
    """Which stage a UNet is for. Raises CheckpointError where it is for none."""
    taken, made = config.get("in_channels"), config.get("out_channels")
    widths = config.get("block_out_channels")
    if not all(isinstance(count, int) and not isinstance(count, bool) and 0 < count < 1000 for count in (taken, made)):
        raise CheckpointError(f"unet/config.json in the folder {folder.name} does not say its channels; get it again.")
    if not isinstance(widths, list) or not 1 <= len(widths) <= 10:
        raise CheckpointError(f"unet/config.json in the folder {folder.name} does not say its widths; get it again.")
    assert isinstance(taken, int) and isinstance(made, int)
    if has_vae:
        if taken == made + 3 and config.get("num_class_embeds"):
            return 3
        named = f" ({kind[:60]})" if kind else ""
        raise CheckpointError(
            f"The folder {folder.name} holds a latent diffusion model such as Stable Diffusion{named}, not a stage of "
            "a pixel cascade. Choose a DeepFloyd IF folder, or the x4 upscaler as the third."
        )
    # red, green and blue, and perhaps the variance of each
    if config.get("class_embed_type") == "timestep" and taken == 6 and made in (3, 6):
        return 2
    if config.get("class_embed_type") is None and taken == 3 and made in (3, 6):
        return 1
    raise CheckpointError(
        f"The folder {folder.name} holds no stage of a cascade that is known here: its UNet takes {taken} channels and "
        f"makes {made}, with class embedding {str(config.get('class_embed_type'))[:40]!r}."
    )


def _check_schedule(config: Mapping[str, Any], folder: Path, name: str) -> None:
    """Raises CheckpointError for a noise schedule that cannot be used."""
    damaged = f"{name} in the folder {folder.name} is damaged: "
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= 100_000:
        raise CheckpointError(f"{damaged}num_train_timesteps is {str(steps)[:40]!r}. Download it again.")
    if config.get("prediction_type", "epsilon") not in ("epsilon", "sample", "v_prediction"):
        raise CheckpointError(
            f"{damaged}prediction_type is {str(config['prediction_type'])[:40]!r}. Download it again."
        )
    for key, most in (("dynamic_thresholding_ratio", 1.0), ("sample_max_value", 1e6)):
        value = config.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise CheckpointError(f"{damaged}{key} is {str(value)[:40]!r}. Download it again.")
    try:
        from diffusers import DDPMScheduler
    except ModuleNotFoundError:  # AUTOMATIC1111's WebUI has none: the job, whose process has it, looks again
        return
    try:
        alphas = DDPMScheduler.from_config(dict(config)).alphas_cumprod
    except Exception as error:  # whatever a library raises at settings that it cannot use
        raise CheckpointError(f"{damaged}no schedule can be made of it. Download it again.") from error
    if len(alphas) != steps or not bool(((alphas >= 0) & (alphas <= 1)).all()):
        raise CheckpointError(f"{damaged}its betas are no noise schedule. Download it again.")


def _with_text(stage: Stage, stages: Sequence[Stage]) -> Stage:
    """The stage with its text encoder: its own or, in stages I and II, another one's of the right width."""
    wanted = stage.text_width
    others = [other.text for other in stages if other.text is not None and stage.number < 3 and other.number < 3]
    for text in ([stage.text] if stage.text is not None else []) + others:
        if encoder_width(text) == wanted:
            # stages are published with the same encoder each: then the first one's is loaded for all
            return replace(stage, text=next((other for other in others if other.digest == text.digest), text))
    found = stage.text or (others[0] if others else None)
    if found is None:
        return stage  # with embeddings on disk, it can do without
    raise CheckpointError(
        f"The text encoder in {found.folder.name} makes embeddings of width {encoder_width(found)}, but the UNet of "
        f"{stage.folder.name} takes {wanted}. Get the text encoder that belongs to it."
    )


def encoder_width(text: Part) -> int:
    """Of the embeddings that a text encoder makes."""
    width = text.config.get("d_model") or text.config.get("hidden_size")
    if not isinstance(width, int):
        raise CheckpointError(f"text_encoder/config.json in the folder {text.folder.name} does not say its width.")
    return width
